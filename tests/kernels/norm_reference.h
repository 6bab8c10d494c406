// RMSNorm and LayerNorm over rows: the reference in double, the plain evaluation in float
// (same_precision.h).
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/norm/norm.h"

namespace orchard::testing {

enum class NormKind : std::uint8_t { rms, layer };

template <class Real>
struct NormStatistics {
  Real mean = 0;     // LayerNorm's
  Real inverse = 0;  // of the rms or of the deviation
};

template <class Real>
NormStatistics<Real> norm_statistics(NormKind kind, const std::vector<Real>& x, std::size_t row,
                                     std::size_t cols) {
  const auto n = static_cast<Real>(cols);
  Real total = 0, squares = 0;
  for (std::size_t c = 0; c < cols; ++c) total += x[row * cols + c];
  const Real mean = kind == NormKind::layer ? total / n : 0;
  for (std::size_t c = 0; c < cols; ++c) {
    const Real centred = x[row * cols + c] - mean;
    squares += centred * centred;
  }
  return {mean, 1 / std::sqrt(squares / n + static_cast<Real>(1e-5f))};
}

// `bias` is empty for RMSNorm.
template <class Real>
std::vector<Real> norm_reference(NormKind kind, const std::vector<Real>& x,
                                 const std::vector<Real>& weight, const std::vector<Real>& bias) {
  const std::size_t cols = weight.size();
  std::vector<Real> y(x.size());
  for (std::size_t r = 0; r < x.size() / cols; ++r) {
    const NormStatistics<Real> s = norm_statistics(kind, x, r, cols);
    for (std::size_t c = 0; c < cols; ++c) {
      y[r * cols + c] = (x[r * cols + c] - s.mean) * s.inverse * weight[c];
      if (!bias.empty()) y[r * cols + c] += bias[c];
    }
  }
  return y;
}

template <class Real>
struct NormGradients {
  std::vector<Real> x, weight, bias;
};

template <class Real>
NormGradients<Real> norm_reference_gradients(NormKind kind, const std::vector<Real>& x,
                                             const std::vector<Real>& weight,
                                             const std::vector<Real>& d_y) {
  const std::size_t cols = weight.size();
  const auto n = static_cast<Real>(cols);
  NormGradients<Real> d{std::vector<Real>(x.size()), std::vector<Real>(cols),
                        std::vector<Real>(cols)};
  for (std::size_t r = 0; r < x.size() / cols; ++r) {
    const NormStatistics<Real> s = norm_statistics(kind, x, r, cols);
    const auto normalised = [&](std::size_t c) { return (x[r * cols + c] - s.mean) * s.inverse; };
    Real sum_g = 0, sum_dot = 0;
    for (std::size_t c = 0; c < cols; ++c) {
      const Real g = d_y[r * cols + c] * weight[c];
      sum_g += g, sum_dot += g * normalised(c);
      d.weight[c] += d_y[r * cols + c] * normalised(c);
      d.bias[c] += d_y[r * cols + c];
    }
    const Real mean_g = kind == NormKind::layer ? sum_g / n : 0, mean_dot = sum_dot / n;
    for (std::size_t c = 0; c < cols; ++c) {
      d.x[r * cols + c] =
          s.inverse * (d_y[r * cols + c] * weight[c] - mean_g - normalised(c) * mean_dot);
    }
  }
  return d;
}

}  // namespace orchard::testing
