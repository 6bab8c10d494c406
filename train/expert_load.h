// How evenly the router of one sparse layer spreads its tokens.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <span>

namespace orchard {

// The busiest expert's share over the mean share: 1 is even, the number of experts is collapse. 0
// when nothing was routed. `shares` [experts], of any scale.
inline double load_imbalance(std::span<const double> shares) {
  const double total = std::accumulate(shares.begin(), shares.end(), 0.0);
  if (total <= 0) return 0;
  return *std::max_element(shares.begin(), shares.end()) * static_cast<double>(shares.size()) /
         total;
}

// Experts that no token chose.
inline std::int64_t dead_experts(std::span<const double> shares) {
  return std::count(shares.begin(), shares.end(), 0.0);
}

}  // namespace orchard
