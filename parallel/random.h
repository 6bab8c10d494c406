// Random numbers without state: a value depends on a key and a counter alone (Philox 4x32-10,
// Salmon et al. 2011), so it is the same whoever computes it, in whatever order.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace orchard {

// One block of Philox 4x32-10: words of `counter` and `key` with the least significant first.
std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter,
                                        std::array<std::uint32_t, 2> key);

class CounterRandom {
 public:
  // A stream of its own for each (seed, name).
  CounterRandom(std::uint64_t seed, std::string_view name);

  // Four independent 32-bit words for this counter.
  std::array<std::uint32_t, 4> words(std::uint64_t counter) const;

  // Uniform in the open interval (0, 1), 32 random bits.
  double uniform(std::uint64_t index) const;
  // Standard normal: inverse of the cumulative distribution at uniform(index).
  double normal(std::uint64_t index) const;
  // Standard normal conditioned on |value| < bound, by the inverse CDF of the cut distribution.
  double truncated_normal(std::uint64_t index, double bound) const;

 private:
  std::uint64_t key_;
};

// Inverse of the standard normal's cumulative distribution, absolute error below 2e-11 on
// (1e-12, 1 - 1e-12).
double normal_quantile(double probability);

}  // namespace orchard
