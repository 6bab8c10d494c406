#include "parallel/random.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

namespace orchard::testing {
namespace {

TEST(Philox, MatchesTheVectorsOfItsAuthors) {
  // Random123, kat_vectors, philox4x32 with 10 rounds.
  using Words = std::array<std::uint32_t, 4>;
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}),
            (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  const std::uint32_t ones = 0xffffffff;
  EXPECT_EQ(philox4x32({ones, ones, ones, ones}, {ones, ones}),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(CounterRandom, IsTheSameInAnyOrder) {
  const CounterRandom random(5, "decoder.layers.3.attention.wq");
  std::vector<double> forward;
  for (std::uint64_t i = 0; i < 1000; ++i) forward.push_back(random.uniform(i));
  const CounterRandom again(5, "decoder.layers.3.attention.wq");
  for (std::uint64_t i = 1000; i-- > 0;) EXPECT_EQ(again.uniform(i), forward[i]) << i;
}

TEST(CounterRandom, UsesEachOfThe64BitsOfAnIndex) {
  const CounterRandom random(5, "x");
  std::set<double> seen{random.uniform(0)};
  for (int bit = 0; bit < 64; ++bit) seen.insert(random.uniform(std::uint64_t{1} << bit));
  EXPECT_EQ(seen.size(), 65u);
}

TEST(CounterRandom, StreamsOfOtherNamesAndSeedsAreUnrelated) {
  // The correlation of n independent pairs has standard deviation 1/sqrt(n): five of them.
  constexpr std::uint64_t n = 20000;
  const CounterRandom random(5, "layers.1.w");
  for (const CounterRandom& other :
       {CounterRandom(6, "layers.1.w"), CounterRandom(5, "layers.2.w"), CounterRandom(5, "")}) {
    double correlation = 0;
    for (std::uint64_t i = 0; i < n; ++i) correlation += random.normal(i) * other.normal(i);
    EXPECT_LT(std::abs(correlation / n), 5 / std::sqrt(static_cast<double>(n)));
  }
}

TEST(CounterRandom, HasTheMomentsOfItsDistributions) {
  constexpr std::uint64_t n = 100000;
  const CounterRandom random(5, "moments");
  double uniform = 0, mean = 0, square = 0, fourth = 0, cut_square = 0, largest = 0;
  for (std::uint64_t i = 0; i < n; ++i) {
    uniform += random.uniform(i) / n;
    const double x = random.normal(i), cut = random.truncated_normal(i, 2.0);
    mean += x / n;
    square += x * x / n;
    fourth += x * x * x * x / n;
    cut_square += cut * cut / n;
    largest = std::max(largest, std::abs(cut));
  }
  // Five standard errors: sqrt(var / n) with variances 1/12, 1, 2, 96 and, for the cut one,
  // below 2.
  const double root = std::sqrt(static_cast<double>(n));
  EXPECT_NEAR(uniform, 0.5, 5 * std::sqrt(1.0 / 12) / root);
  EXPECT_NEAR(mean, 0, 5 / root);
  EXPECT_NEAR(square, 1, 5 * std::sqrt(2.0) / root);
  EXPECT_NEAR(fourth, 3, 5 * std::sqrt(96.0) / root);
  // 1 - 2·2·φ(2) / (Φ(2) - Φ(-2))
  EXPECT_NEAR(cut_square, 0.7737413, 5 * std::sqrt(2.0) / root);
  EXPECT_LT(largest, 2);
  EXPECT_GT(largest, 1.99);
}

// By bisection on the tail in long double, whose rounding leaves some 1e-18 / φ(x) · p of error.
double reference_quantile(double probability) {
  const bool lower = probability < 0.5;
  const long double tail = lower ? probability : 1.0L - probability;
  long double below = 0, above = 40;  // upper tail falls from 0.5 to nothing
  for (int i = 0; i < 200; ++i) {
    const long double middle = (below + above) / 2;
    const bool too_much = 0.5L * erfcl(middle * 0.70710678118654752440084436210485L) > tail;
    (too_much ? below : above) = middle;
  }
  return static_cast<double>(lower ? -below : below);
}

// The error that the header promises. Near the centre it is that of fp64.
TEST(NormalQuantile, IsAccurateIntoTheTails) {
  for (double p = 1.1e-12; p < 0.5; p *= 1.37) {
    EXPECT_NEAR(normal_quantile(p), reference_quantile(p), 2e-11) << p;
    EXPECT_NEAR(normal_quantile(1 - p), reference_quantile(1 - p), 2e-11) << "1 - " << p;
  }
  EXPECT_NEAR(normal_quantile(0.5), 0, 1e-12);
  EXPECT_NEAR(normal_quantile(0.975), 1.959963984540054, 1e-12);
}

}  // namespace
}  // namespace orchard::testing
