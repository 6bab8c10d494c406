// Resizes position tables. Runs once per change of grid, on the host: 16 taps per output row.
#include <algorithm>
#include <array>
#include <cmath>

#include "kernels/core/error.h"
#include "kernels/image/bicubic.h"
#include "kernels/image/image.h"

namespace orchard {
namespace {

struct Taps {
  std::array<int, 4> index;
  std::array<double, 4> weight;
};

Taps taps_of(int i, int size, int new_size) {
  const double centre = (i + 0.5) * size / new_size - 0.5;
  const int first = static_cast<int>(std::floor(centre)) - 1;
  Taps taps{};
  for (int tap = 0; tap < 4; ++tap) {
    const auto slot = static_cast<std::size_t>(tap);
    taps.index[slot] = std::clamp(first + tap, 0, size - 1);
    taps.weight[slot] = bicubic(centre - (first + tap), -0.75);
  }
  return taps;
}

}  // namespace

void resize_positions(const PositionResize& op) {
  require(op.rows > 0 && op.cols > 0 && op.new_rows > 0 && op.new_cols > 0,
          "resize_positions: cannot resize a position table from {} x {} to {} x {}", op.rows,
          op.cols, op.new_rows, op.new_cols);
  for (int i = 0; i < op.new_rows; ++i) {
    const Taps down = taps_of(i, op.rows, op.new_rows);
    for (int j = 0; j < op.new_cols; ++j) {
      const Taps across = taps_of(j, op.cols, op.new_cols);
      float* const out = op.resized + (static_cast<std::int64_t>(i) * op.new_cols + j) * op.width;
      std::fill_n(out, op.width, 0.0f);
      for (std::size_t r = 0; r < 4; ++r) {
        for (std::size_t s = 0; s < 4; ++s) {
          const auto weight = static_cast<float>(down.weight[r] * across.weight[s]);
          const float* const in =
              op.table +
              (static_cast<std::int64_t>(down.index[r]) * op.cols + across.index[s]) * op.width;
          for (std::int64_t c = 0; c < op.width; ++c) out[c] += weight * in[c];
        }
      }
    }
  }
}

}  // namespace orchard
