#include "parallel/random.h"

#include <algorithm>
#include <cmath>

namespace orchard {
namespace {

// FNV-1a, then the finaliser of MurmurHash3: names that differ in one letter get unrelated keys.
std::uint64_t hash_name(std::uint64_t seed, std::string_view name) {
  std::uint64_t hash = 0xcbf29ce484222325ull ^ (seed * 0x9e3779b97f4a7c15ull);
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3ull;
  hash = (hash ^ (hash >> 33)) * 0xff51afd7ed558ccdull;
  hash = (hash ^ (hash >> 33)) * 0xc4ceb9fe1a85ec53ull;
  return hash ^ (hash >> 33);
}

double normal_cdf(double x) {
  return 0.5 * std::erfc(-x * M_SQRT1_2);
}

}  // namespace

std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter,
                                        std::array<std::uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = std::uint64_t{0xD2511F53} * counter[0];
    const std::uint64_t p1 = std::uint64_t{0xCD9E8D57} * counter[2];
    counter = {
        static_cast<std::uint32_t>(p1 >> 32) ^ counter[1] ^ key[0], static_cast<std::uint32_t>(p1),
        static_cast<std::uint32_t>(p0 >> 32) ^ counter[3] ^ key[1], static_cast<std::uint32_t>(p0)};
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return counter;
}

CounterRandom::CounterRandom(std::uint64_t seed, std::string_view name)
    : key_(hash_name(seed, name)) {}

std::array<std::uint32_t, 4> CounterRandom::words(std::uint64_t counter) const {
  return philox4x32(
      {static_cast<std::uint32_t>(counter), static_cast<std::uint32_t>(counter >> 32), 0, 0},
      {static_cast<std::uint32_t>(key_), static_cast<std::uint32_t>(key_ >> 32)});
}

double CounterRandom::uniform(std::uint64_t index) const {
  return (words(index / 4)[index % 4] + 0.5) * 0x1p-32;
}

double CounterRandom::normal(std::uint64_t index) const {
  return normal_quantile(uniform(index));
}

double CounterRandom::truncated_normal(std::uint64_t index, double bound) const {
  const double tail = normal_cdf(-bound);
  return normal_quantile(tail + uniform(index) * (1 - 2 * tail));
}

double normal_quantile(double probability) {
  // Rational start of Abramowitz & Stegun 26.2.23 (error 4.5e-4), then Halley steps on the exact
  // CDF: each step cubes the error.
  const double p = std::min(probability, 1 - probability);
  const double t = std::sqrt(-2 * std::log(p));
  double x = t - (2.515517 + t * (0.802853 + t * 0.010328)) /
                     (1 + t * (1.432788 + t * (0.189269 + t * 0.001308)));
  for (int step = 0; step < 2; ++step) {
    const double error = normal_cdf(-x) - p;  // not 1 - cdf(x), which has no digits in the tail
    const double slope = std::exp(-0.5 * x * x) / std::sqrt(2 * M_PI);
    const double ratio = error / slope;
    x += ratio / (1 + 0.5 * x * ratio);
  }
  return probability < 0.5 ? -x : x;
}

}  // namespace orchard
