// Draws: shares, epochs without replacement, and shuffles that shuffle.
#include "data/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <numeric>
#include <set>

#include "data/counter_hash.h"
#include "kernels/core/error.h"

namespace orchard {
namespace {

std::vector<std::int64_t> range(std::int64_t first, std::int64_t count) {
  std::vector<std::int64_t> values(static_cast<std::size_t>(count));
  std::iota(values.begin(), values.end(), first);
  return values;
}

std::vector<std::int64_t> draws(const Sampler& sampler, int count) {
  Sampler::Cursor cursor = sampler.begin();
  std::vector<std::int64_t> samples;
  samples.reserve(static_cast<std::size_t>(count));
  for (int n = 0; n < count; ++n) samples.push_back(sampler.next(cursor));
  return samples;
}

TEST(Permutation, IsABijectionOfEverySize) {
  for (std::uint64_t size = 1; size < 300; ++size) {
    for (const std::uint64_t key : {0u, 1u, 12345u}) {
      const Permutation order(key, size);
      std::set<std::uint64_t> seen;
      for (std::uint64_t i = 0; i < size; ++i) {
        ASSERT_LT(order(i), size);
        seen.insert(order(i));
      }
      ASSERT_EQ(seen.size(), size);
    }
  }
}

TEST(Permutation, SmallOrdersAreAllReachedAlike) {
  std::map<std::vector<std::uint64_t>, int> count;
  constexpr int keys = 24000, expected = keys / 24;
  for (int key = 0; key < keys; ++key) {
    const Permutation order(counter_hash(7, static_cast<std::uint64_t>(key)), 4);
    ++count[{order(0), order(1), order(2), order(3)}];
  }
  // The order of four samples may be somewhat likelier than another's; one that never comes, or
  // comes twice as often, would show a shuffle that does not shuffle.
  EXPECT_EQ(count.size(), 24u);
  for (const auto& [order, times] : count) EXPECT_NEAR(times, expected, 0.5 * expected);
}

TEST(Permutation, PlacesAreUniformAndIndependentOfTheirNeighbours) {
  constexpr std::uint64_t size = 1000;
  constexpr int keys = 2000, bins = 10;
  std::vector<int> first(bins), difference(bins);
  for (int key = 0; key < keys; ++key) {
    const Permutation order(counter_hash(3, static_cast<std::uint64_t>(key)), size);
    const std::uint64_t a = order(17), b = order(18);
    ++first[a * bins / size];
    ++difference[(b + size - a) % size * bins / size];
  }
  // 200 a bin, deviation 13.4: five of them.
  for (const int count : first) EXPECT_NEAR(count, 200, 67);
  for (const int count : difference) EXPECT_NEAR(count, 200, 67);
}

TEST(Sampler, DrawsEachSampleOncePerEpochInANewOrder) {
  const std::vector<ResolvedCategory> categories{{"a", 1.0, range(100, 37)}};
  const auto samples = draws(Sampler(categories, 1), 3 * 37);
  std::vector<std::vector<std::int64_t>> epochs;
  for (int epoch = 0; epoch < 3; ++epoch) {
    epochs.emplace_back(samples.begin() + epoch * 37, samples.begin() + (epoch + 1) * 37);
    EXPECT_THAT(epochs.back(), ::testing::UnorderedElementsAreArray(range(100, 37)));
  }
  EXPECT_NE(epochs[0], epochs[1]);
  EXPECT_NE(epochs[1], epochs[2]);
}

TEST(Sampler, CategoriesComeInTheirShares) {
  const std::vector<ResolvedCategory> categories{
      {"a", 0.372, range(0, 10)}, {"b", 0.01, range(10, 1)}, {"c", 0.618, range(11, 500)}};
  constexpr int count = 100000;
  std::vector<int> drawn(3);
  for (const std::int64_t sample : draws(Sampler(categories, 5), count)) {
    ++drawn[sample < 10 ? 0 : sample < 11 ? 1 : 2];
  }
  for (std::size_t c = 0; c < 3; ++c) {
    const double p = categories[c].share;
    EXPECT_NEAR(drawn[c], p * count, 5 * std::sqrt(count * p * (1 - p))) << categories[c].name;
  }
}

TEST(Sampler, IsAFunctionOfSeedAndNumber) {
  const std::vector<ResolvedCategory> categories{{"a", 0.5, range(0, 50)},
                                                 {"b", 0.5, range(50, 9)}};
  const auto first = draws(Sampler(categories, 5), 500);
  EXPECT_EQ(first, draws(Sampler(categories, 5), 500));
  EXPECT_NE(first, draws(Sampler(categories, 6), 500));
}

TEST(Sampler, ACategoryKeepsItsOrderWhenAnotherIsAdded) {
  const std::vector<ResolvedCategory> one{{"a", 1.0, range(0, 50)}};
  const std::vector<ResolvedCategory> two{{"z", 0.3, range(50, 50)}, {"a", 0.7, range(0, 50)}};
  auto mixed = draws(Sampler(two, 5), 400);
  std::erase_if(mixed, [](std::int64_t sample) { return sample >= 50; });
  mixed.resize(50);
  EXPECT_EQ(mixed, draws(Sampler(one, 5), 50));
}

TEST(Sampler, AnEmptyCategoryIsAnError) {
  const std::vector<ResolvedCategory> categories{{"a", 1.0, {}}};
  EXPECT_THROW(Sampler(categories, 1), Error);
}

}  // namespace
}  // namespace orchard
