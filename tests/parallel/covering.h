// Which of very many combinations a test should run: few that together show every feature that any
// of them has.
#pragma once

#include <algorithm>
#include <concepts>
#include <numeric>
#include <vector>

#include "parallel/random.h"

namespace orchard::testing {

// One level of each axis.
using Combination = std::vector<int>;

// All combinations of levels, as many of each axis as `levels` says, that pass the filter.
inline std::vector<Combination> all_combinations(
    const std::vector<int>& levels, const std::predicate<const Combination&> auto& is_legal) {
  std::vector<Combination> all;
  Combination next(levels.size());
  for (;;) {
    if (is_legal(next)) all.push_back(next);
    std::size_t axis = 0;
    while (axis < levels.size() && ++next[axis] == levels[axis]) next[axis++] = 0;
    if (axis == levels.size()) return all;
  }
}

// Numbers of the pairs of levels that a combination shows, below pair_features(axes).
inline constexpr int most_levels = 8;
inline int pair_features(std::size_t axes) {
  const int values = static_cast<int>(axes) * most_levels;
  return values * values;
}
inline std::vector<int> pairs_of(const Combination& c) {
  const int axes = static_cast<int>(c.size());
  std::vector<int> pairs;
  const auto value = [&](int axis) {
    return axis * most_levels + c[static_cast<std::size_t>(axis)];
  };
  for (int a = 0; a < axes; ++a)
    for (int b = a + 1; b < axes; ++b) pairs.push_back(value(a) * axes * most_levels + value(b));
  return pairs;
}

// Combinations that show every feature, a number from 0 on, that one of `all` shows. Greedy: each
// next one is, of some dozens that show something new, the one that shows most. Always the same.
inline std::vector<Combination> covering(std::vector<Combination> all, const auto& features_of) {
  const CounterRandom random(3, "covering");
  std::uint64_t counter = 0;
  for (std::size_t i = all.size(); i-- > 1;) {
    const double at = random.uniform(counter++) * static_cast<double>(i + 1);
    std::swap(all[i], all[static_cast<std::size_t>(at)]);
  }
  std::vector<bool> covered;
  const auto news = [&](const Combination& c) {
    return std::ranges::count_if(features_of(c), [&](int feature) {
      return static_cast<std::size_t>(feature) >= covered.size() ||
             !covered[static_cast<std::size_t>(feature)];
    });
  };
  std::vector<Combination> chosen;
  constexpr std::size_t candidates = 48;
  for (std::size_t first = 0; first < all.size();) {
    if (news(all[first]) == 0) {
      ++first;
      continue;
    }
    const std::size_t last = std::min(first + candidates, all.size());
    std::size_t best = first;
    for (std::size_t i = first + 1; i < last; ++i)
      if (news(all[i]) > news(all[best])) best = i;
    chosen.push_back(all[best]);
    for (const int feature : features_of(all[best])) {
      if (static_cast<std::size_t>(feature) >= covered.size())
        covered.resize(static_cast<std::size_t>(feature) + 1);
      covered[static_cast<std::size_t>(feature)] = true;
    }
  }
  return chosen;
}

}  // namespace orchard::testing
