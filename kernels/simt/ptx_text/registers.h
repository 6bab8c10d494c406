// From the names of registers, constants and symbols to slots of a thread's registers.
#pragma once

#include <cstdint>
#include <map>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace orchard::simt::ptx {

// By size: 'p' predicate, 'h' 16 bits, 'w' 32, 'd' 64, as in the patterns of opcodes.h.
struct Register {
  std::uint32_t slot;
  char letter;
  std::uint32_t words() const { return letter == 'd' ? 2 : 1; }
};

class Registers {
 public:
  Registers();

  void open_scope() { scopes_.emplace_back(); }
  void close_scope() { scopes_.pop_back(); }
  std::size_t depth() const { return scopes_.size(); }

  // One register, or those with the numbers 0 .. count-1 behind their name. False: no such type.
  bool declare(std::string_view type, std::string_view name, std::uint64_t count);
  // nullptr: not declared. The result holds until the next call.
  const Register* find(std::string_view name);
  // A register that holds these bits from the start.
  Register constant(char letter, std::uint64_t bits);

  // What a thread's registers hold at first: constants, and poison in those that the text declares.
  std::vector<std::uint32_t> take_image() { return std::move(image_); }

 private:
  struct Range {
    Register first;
    std::uint64_t count;  // 0: one register without a number
  };

  std::uint32_t allocate(std::uint64_t words);

  std::vector<std::unordered_map<std::string_view, Range>> scopes_;
  std::map<std::pair<char, std::uint64_t>, Register> constants_;
  std::vector<std::uint32_t> image_;
  Register found_{};
};

}  // namespace orchard::simt::ptx
