// Squeeze-and-excitation's scaling: the reference in double, the plain evaluation in float
// (same_precision.h).
#pragma once

#include "tests/kernels/activation_reference.h"
#include "tests/kernels/op_test.h"

namespace orchard::testing {

// x, y, d_y: [images, pixels, channels], scale: [images, channels].
template <class Real>
struct ExciteReference {
  std::vector<Real> y, d_x, d_scale;

  ExciteReference(const Shape& shape, const std::vector<Real>& x, const std::vector<Real>& scale,
                  const std::vector<Real>& d_y)
      : y(x.size()), d_x(x.size()), d_scale(scale.size()) {
    const auto pixels = static_cast<std::size_t>(shape[1]);
    const auto channels = static_cast<std::size_t>(shape[2]);
    for (std::size_t i = 0; i < x.size(); ++i) {
      const std::size_t s = i / (pixels * channels) * channels + i % channels;
      y[i] = x[i] * sigmoid(scale[s]);
      d_x[i] = d_y[i] * sigmoid(scale[s]);
      d_scale[s] += d_y[i] * x[i];
    }
    for (std::size_t s = 0; s < scale.size(); ++s)
      d_scale[s] *= sigmoid(scale[s]) * (1 - sigmoid(scale[s]));
  }
};

}  // namespace orchard::testing
