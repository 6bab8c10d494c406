// Ragged groups of rows for the tests of what grouped products move.
#pragma once

#include <array>
#include <cstdint>
#include <iterator>
#include <numeric>
#include <vector>

namespace orchard::testing {

// Groups with a tile, with a part of one, with one and a part, and with nothing.
inline constexpr std::array group_rows{128, 32, 0, 160, 0, 64};

struct Groups {
  std::vector<int> offsets{0};
  Groups() {
    for (const int rows : group_rows) offsets.push_back(offsets.back() + rows);
  }
  std::int64_t count() const { return std::ssize(group_rows); }
  std::int64_t rows() const { return offsets.back(); }
  // Of all groups, cut in tiles of `side` rows.
  std::int64_t tiles(std::int64_t side) const {
    return std::accumulate(
        group_rows.begin(), group_rows.end(), std::int64_t{0},
        [&](std::int64_t sum, int rows) { return sum + (rows + side - 1) / side; });
  }
};

}  // namespace orchard::testing
