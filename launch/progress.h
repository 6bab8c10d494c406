// How far a long operation has come and when it will be done, on standard error: a line that
// rewrites itself on a terminal, now and then a new line elsewhere.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace orchard {

class Progress {
 public:
  explicit Progress(std::string what);
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  // Ends the line.
  ~Progress();

  void report(std::int64_t done, std::int64_t total);

 private:
  using Clock = std::chrono::steady_clock;
  std::string what_;
  bool on_terminal_;
  bool open_ = false;  // a line on the terminal waits to be rewritten
  Clock::time_point start_, last_;
};

// "42 s", "3 min 07 s", "2 h 05 min".
std::string duration_text(double seconds);

}  // namespace orchard
