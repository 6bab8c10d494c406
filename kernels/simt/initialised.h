// Which bytes of a memory have been written: one bit each.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace orchard::simt {

class Initialised {
 public:
  // Grows to `bytes`; what is new is not initialised.
  void grow_to(std::size_t bytes) { words_.resize((bytes + 63) / 64); }
  void forget(std::size_t begin, std::size_t bytes) { change(begin, bytes, false); }
  void mark(std::size_t begin, std::size_t bytes) {
    if (in_one_word(begin, bytes)) [[likely]] {
      words_[begin / 64] |= ones(bytes) << begin % 64;
    } else {
      change(begin, bytes, true);
    }
  }

  bool covers(std::size_t begin, std::size_t bytes) const {
    if (in_one_word(begin, bytes)) [[likely]] {
      return (~words_[begin / 64] & ones(bytes) << begin % 64) == 0;
    }
    return words_cover(begin, bytes);
  }
  bool at(std::size_t byte) const { return words_[byte / 64] >> byte % 64 & 1; }

  // Bytes [to, to + bytes) become what those at `from` of `source` are.
  void copy(std::size_t to, const Initialised& source, std::size_t from, std::size_t bytes) {
    if (source.covers(from, bytes)) return mark(to, bytes);
    for (std::size_t i = 0; i < bytes; ++i) change(to + i, 1, source.at(from + i));
  }

 private:
  // As those of nearly all instructions are; 0 bytes are not.
  static bool in_one_word(std::size_t begin, std::size_t bytes) {
    return bytes - 1 < 64 - begin % 64;
  }
  static std::uint64_t ones(std::size_t count) { return ~std::uint64_t{0} >> (64 - count); }

  template <class Action>
  static void for_words(std::size_t begin, std::size_t bytes, const Action& action) {
    for (const std::size_t end = begin + bytes; begin < end;) {
      const std::size_t bit = begin % 64, count = std::min(end - begin, 64 - bit);
      action(begin / 64, ones(count) << bit);
      begin += count;
    }
  }
  // Not inlined, so that who asks for bytes in one word saves no registers for this.
  [[gnu::noinline]] bool words_cover(std::size_t begin, std::size_t bytes) const {
    bool all = true;
    for_words(begin, bytes,
              [&](std::size_t word, std::uint64_t mask) { all &= (words_[word] & mask) == mask; });
    return all;
  }
  [[gnu::noinline]] void change(std::size_t begin, std::size_t bytes, bool value) {
    for_words(begin, bytes, [&](std::size_t word, std::uint64_t mask) {
      words_[word] = value ? words_[word] | mask : words_[word] & ~mask;
    });
  }

  std::vector<std::uint64_t> words_;
};

}  // namespace orchard::simt
