// The activations and their slopes: the reference in double, the plain evaluation in float
// (same_precision.h).
#pragma once

#include <cmath>

#include "kernels/activation/activation.h"

namespace orchard::testing {

template <class Real>
Real sigmoid(Real x) {
  return 1 / (1 + std::exp(-x));
}

template <class Real>
Real steepness(Activation kind) {
  return kind == Activation::quick_gelu ? static_cast<Real>(1.702) : 1;
}

template <class Real>
Real activated(Activation kind, Real x) {
  return x * sigmoid(steepness<Real>(kind) * x);
}

template <class Real>
Real activation_slope(Activation kind, Real x) {
  const Real k = steepness<Real>(kind), s = sigmoid(k * x);
  return s + k * x * s * (1 - s);
}

}  // namespace orchard::testing
