// Where a program talks to its user: a terminal, on which the last line may change in place, or a
// file or pipe, which takes finished lines only.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <string>
#include <string_view>

namespace orchard {

class Terminal {
 public:
  enum class Kind : std::uint8_t { live, plain };

  // `out` must outlive it. Live lines are cut to `columns`; printed ones are not.
  Terminal(std::ostream& out, Kind kind, std::size_t columns = 80);
  Terminal(const Terminal&) = delete;
  Terminal& operator=(const Terminal&) = delete;
  // Leaves the cursor on a line of its own.
  ~Terminal();

  // What a file descriptor of the process is connected to.
  static Kind kind_of(int descriptor);
  static std::size_t columns_of(int descriptor);

  bool is_live() const { return kind_ == Kind::live; }
  // A line to stay. It takes the place of the live line.
  void print(std::string_view line);
  // The live line, replaced by the next call of either; nothing where the terminal is plain.
  // ASCII, so that a byte is a column.
  void update(std::string_view line);

 private:
  std::ostream& out_;
  Kind kind_;
  std::size_t columns_;
  bool live_line_ = false;  // one is on the screen
};

// "42 s", "3:07", "1:02:13", "5 d 03:10": the precision that matters at each size.
std::string format_duration(double seconds);

// "873", "5.21k", "12.3M": three digits.
std::string format_count(double value);

}  // namespace orchard
