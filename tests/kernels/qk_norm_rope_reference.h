// QK-norm + RoPE: the reference in double, the plain evaluation in float (same_precision.h).
#pragma once

#include <cmath>
#include <vector>

#include "kernels/norm/norm.h"

namespace orchard::testing {

// What both directions have beside x. Rows of `rotation`, [max_positions, head_dim], are cos | sin.
template <class Real>
struct QkNormRopeOperands {
  std::vector<Real> weight, rotation;
  std::size_t heads;
  std::vector<int> positions;  // of the tokens

  std::size_t head_dim() const { return weight.size(); }
  const Real* rotation_of(std::size_t row) const {
    return rotation.data() + static_cast<std::size_t>(positions[row / heads]) * head_dim();
  }
};

// Turns the pairs of one head, or (sign -1) turns them back.
template <class Real>
void turn_pairs(Real* head, const Real* rotation, std::size_t head_dim, Real sign) {
  const std::size_t half = head_dim / 2;
  for (std::size_t i = 0; i < half; ++i) {
    const Real cosine = rotation[i], sine = sign * rotation[half + i];
    const Real a = head[i], b = head[half + i];
    head[i] = a * cosine - b * sine;
    head[half + i] = a * sine + b * cosine;
  }
}

template <class Real>
Real inverse_rms_of(const Real* head, std::size_t head_dim) {
  Real squares = 0;
  for (std::size_t i = 0; i < head_dim; ++i) squares += head[i] * head[i];
  return 1 / std::sqrt(squares / static_cast<Real>(head_dim) + static_cast<Real>(1e-5f));
}

template <class Real>
std::vector<Real> qk_norm_rope_reference(const std::vector<Real>& x,
                                         const QkNormRopeOperands<Real>& o) {
  const std::size_t head_dim = o.head_dim();
  std::vector<Real> y = x;
  for (std::size_t row = 0; row < x.size() / head_dim; ++row) {
    Real* const head = y.data() + row * head_dim;
    const Real r = inverse_rms_of(head, head_dim);
    for (std::size_t i = 0; i < head_dim; ++i) head[i] = head[i] * r * o.weight[i];
    turn_pairs<Real>(head, o.rotation_of(row), head_dim, 1);
  }
  return y;
}

template <class Real>
struct QkNormRopeGradients {
  std::vector<Real> x, weight;
};

template <class Real>
QkNormRopeGradients<Real> qk_norm_rope_gradients(const std::vector<Real>& x,
                                                 const QkNormRopeOperands<Real>& o,
                                                 const std::vector<Real>& d_y) {
  const std::size_t head_dim = o.head_dim();
  QkNormRopeGradients<Real> d{d_y, std::vector<Real>(head_dim)};
  for (std::size_t row = 0; row < x.size() / head_dim; ++row) {
    const Real* const input = x.data() + row * head_dim;
    Real* const head = d.x.data() + row * head_dim;
    turn_pairs<Real>(head, o.rotation_of(row), head_dim, -1);
    const Real r = inverse_rms_of(input, head_dim);
    Real dot = 0;
    for (std::size_t i = 0; i < head_dim; ++i) {
      d.weight[i] += head[i] * (input[i] * r);
      head[i] *= o.weight[i];
      dot += head[i] * (input[i] * r);
    }
    const Real mean = dot / static_cast<Real>(head_dim);
    for (std::size_t i = 0; i < head_dim; ++i) head[i] = r * (head[i] - input[i] * r * mean);
  }
  return d;
}

}  // namespace orchard::testing
