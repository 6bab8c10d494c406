// Picture preparation: the reference in double, the plain evaluation in float (same_precision.h).
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "kernels/image/image.h"
#include "tests/kernels/op_test.h"

namespace orchard::testing {

inline double keys(double distance, double a) {
  const double x = std::abs(distance);
  if (x <= 1) return (a + 2) * x * x * x - (a + 3) * x * x + 1;
  return x < 2 ? a * x * x * x - 5 * a * x * x + 8 * a * x - 4 * a : 0;
}

// Weights of all `in` inputs for output i of `out`, from the definition: the kernel stretched by the
// shrink factor, centred between half-pixel centres, cut at the border and renormalised. Made in double,
// as the operation makes them.
template <class Real>
std::vector<Real> antialiased_weights(std::int64_t i, std::int64_t in, std::int64_t out) {
  const double scale = static_cast<double>(in) / static_cast<double>(out);
  const double stretch = std::max(1.0, scale);
  std::vector<double> weights;
  double sum = 0;
  for (std::int64_t k = 0; k < in; ++k) {
    const double distance =
        (static_cast<double>(k) + 0.5 - (static_cast<double>(i) + 0.5) * scale) / stretch;
    weights.push_back(keys(distance, -0.5));
    sum += weights.back();
  }
  for (double& weight : weights) weight /= sum;
  return {weights.begin(), weights.end()};
}

// Rows, then columns.
template <class Real>
std::vector<Real> resized(const Guarded& x, std::int64_t height, std::int64_t width) {
  const std::int64_t in_height = x.shape()[0], in_width = x.shape()[1], values = 3 * width;
  std::vector<Real> between(static_cast<std::size_t>(in_height * values));
  for (std::int64_t j = 0; j < width; ++j) {
    const std::vector<Real> across = antialiased_weights<Real>(j, in_width, width);
    for (std::int64_t r = 0; r < in_height; ++r) {
      for (std::int64_t i = 0; i < in_width * 3; ++i) {
        between[static_cast<std::size_t>(r * values + 3 * j + i % 3)] +=
            across[static_cast<std::size_t>(i / 3)] * static_cast<Real>(x.at(r * in_width * 3 + i));
      }
    }
  }
  std::vector<Real> out;
  for (std::int64_t row = 0; row < height; ++row) {
    const std::vector<Real> down = antialiased_weights<Real>(row, in_height, height);
    for (std::int64_t i = 0; i < values; ++i) {
      Real sum = 0;
      for (std::int64_t r = 0; r < in_height; ++r)
        sum +=
            down[static_cast<std::size_t>(r)] * between[static_cast<std::size_t>(r * values + i)];
      out.push_back(std::clamp<Real>(sum, 0, 255));
    }
  }
  return out;
}

struct PatchCase {
  DType dtype;
  std::int64_t tile_rows, tile_cols, side, patch, height, width;

  std::int64_t grid() const { return side / patch; }  // patches a side of a tile
  Shape patches() const { return {tile_rows * tile_cols, grid() * grid(), 3 * patch * patch}; }
};

template <class Real>
std::vector<Real> patchified(const PatchCase& c, const Guarded& x, const std::array<Real, 3>& mean,
                             const std::array<Real, 3>& std) {
  const std::int64_t canvas_width = c.tile_cols * c.side, grid = c.grid();
  std::vector<Real> out;
  for (std::int64_t at = 0; at < c.patches().numel(); ++at) {
    const std::int64_t i = at % (3 * c.patch * c.patch), patch = at / (3 * c.patch * c.patch);
    const std::int64_t p = patch % (grid * grid), tile = patch / (grid * grid);
    const std::int64_t colour = i / c.patch / c.patch;
    const std::int64_t row =
        tile / c.tile_cols * c.side + p / grid * c.patch + i / c.patch % c.patch;
    const std::int64_t col = tile % c.tile_cols * c.side + p % grid * c.patch + i % c.patch;
    const auto of_colour = static_cast<std::size_t>(colour);
    const auto value = static_cast<Real>(x.at((row * canvas_width + col) * 3 + colour));
    out.push_back(row < c.height && col < c.width ? (value / 255 - mean[of_colour]) / std[of_colour]
                                                  : 0);
  }
  return out;
}

}  // namespace orchard::testing
