// Randomness without state: a value is a function of a key and a counter, so any rank can ask for
// any value at any time. Not for cryptography.
#pragma once

#include <bit>
#include <cstdint>
#include <string_view>

namespace orchard {

// A bijection of 64-bit words in which every input bit moves every output bit (the finaliser of
// SplitMix64).
constexpr std::uint64_t mix_bits(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

constexpr std::uint64_t counter_hash(std::uint64_t key, std::uint64_t counter) {
  return mix_bits(mix_bits(counter + 0x9e3779b97f4a7c15u) ^ key);
}

// Uniform in [0, 1), 53 bits.
constexpr double counter_uniform(std::uint64_t key, std::uint64_t counter) {
  return static_cast<double>(counter_hash(key, counter) >> 11) * 0x1p-53;
}

// FNV-1a: a key from a name, so that a category keeps its order of samples when others come and go.
constexpr std::uint64_t name_hash(std::string_view name) {
  std::uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return hash;
}

// A shuffle of [0, size) whose i-th place is computed, not stored: rounds of keyed additions, odd
// multiplications and shifts, each a bijection of the words of as many bits as size - 1 has; a
// result of size or more goes round again (fewer than two passes on average).
class Permutation {
 public:
  Permutation(std::uint64_t key, std::uint64_t size)
      : key_(key), size_(size), bits_(size < 2 ? 0 : std::bit_width(size - 1)) {}

  // i < size
  std::uint64_t operator()(std::uint64_t i) const {
    if (bits_ == 0) return 0;
    do {
      i = pass(i);
    } while (i >= size_);
    return i;
  }

 private:
  std::uint64_t pass(std::uint64_t x) const {
    constexpr int rounds = 5;
    const std::uint64_t mask = ~std::uint64_t{0} >> (64 - bits_);
    const int shift = (bits_ + 1) / 2;
    std::uint64_t round_key = key_;
    for (int round = 0; round < rounds; ++round) {
      round_key = mix_bits(round_key + 0x9e3779b97f4a7c15u);
      x = (x + (round_key >> 32)) * (round_key | 1) & mask;
      x ^= x >> shift;
    }
    return x;
  }

  std::uint64_t key_;
  std::uint64_t size_;
  int bits_;
};

}  // namespace orchard
