// A step of AdaFactor, factored and not: the reference in double, the plain evaluation in float
// (same_precision.h).
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "tests/kernels/op_test.h"

namespace orchard::testing {

struct AdaFactorHyper {
  double lr = 1e-2, clip = 1, decay = 0.01f, scale = 0.5;
};

template <class Real>
Real mean_of(const std::vector<Real>& values) {
  return std::accumulate(values.begin(), values.end(), Real{}) / static_cast<Real>(values.size());
}

// Steps 2 to 7 of the chain: clip the block, multiply by the learning rate, decay, subtract.
template <class Real>
void apply_adafactor(std::vector<Real>& w, const std::vector<Real>& update,
                     const AdaFactorHyper& h) {
  std::vector<Real> squares = update;
  for (Real& s : squares) s *= s;
  const Real rms = std::sqrt(mean_of(squares)), lr = h.lr, decay = h.decay;
  const Real clip = std::max<Real>(1, rms / static_cast<Real>(h.clip));
  for (std::size_t i = 0; i < w.size(); ++i) w[i] -= lr * update[i] / clip + decay * w[i];
}

// The moving average of step t: β₂ = 1 - t^-0.8. Both shares come from double: in fp32 the smaller
// one would lose its digits where β₂ is near one.
template <class Real>
class AdaFactorAverage {
 public:
  explicit AdaFactorAverage(int t)
      : keep_(static_cast<Real>(1 - std::pow(t, -0.8))),
        rest_(static_cast<Real>(std::pow(t, -0.8))) {}
  Real operator()(Real before, Real value) const { return keep_ * before + rest_ * value; }

 private:
  Real keep_, rest_;
};

template <class Real>
struct FactoredAdaFactor {
  std::vector<Real> w, v_row, v_col;

  void step(const std::vector<Real>& gradients, const AdaFactorHyper& h, int t) {
    const std::size_t rows = v_row.size(), cols = v_col.size();
    const AdaFactorAverage<Real> average(t);
    std::vector<Real> row_sums(rows), col_sums(cols), update(w.size());
    for (std::size_t i = 0; i < w.size(); ++i) {
      const Real g = gradients[i] * static_cast<Real>(h.scale);
      row_sums[i / cols] += g * g + static_cast<Real>(1e-30);
      col_sums[i % cols] += g * g + static_cast<Real>(1e-30);
    }
    for (std::size_t r = 0; r < rows; ++r)
      v_row[r] = average(v_row[r], row_sums[r] / static_cast<Real>(cols));
    for (std::size_t c = 0; c < cols; ++c)
      v_col[c] = average(v_col[c], col_sums[c] / static_cast<Real>(rows));
    const Real mean = mean_of(v_row);
    for (std::size_t i = 0; i < w.size(); ++i) {
      update[i] = gradients[i] * static_cast<Real>(h.scale) / std::sqrt(v_row[i / cols] / mean) /
                  std::sqrt(v_col[i % cols]);
    }
    apply_adafactor(w, update, h);
  }
};

template <class Real>
struct FullAdaFactor {
  std::vector<Real> w, v;

  void step(const std::vector<Real>& gradients, const AdaFactorHyper& h, int t) {
    const AdaFactorAverage<Real> average(t);
    std::vector<Real> update(w.size());
    for (std::size_t i = 0; i < w.size(); ++i) {
      const Real g = gradients[i] * static_cast<Real>(h.scale);
      v[i] = average(v[i], g * g + static_cast<Real>(1e-30));
      update[i] = g / std::sqrt(v[i]);
    }
    apply_adafactor(w, update, h);
  }
};

// Gradients whose rows and columns differ in size, growing with t so that clipping at 1 sets in after
// the first step.
inline Guarded adafactor_gradient(std::int64_t rows, std::int64_t cols, int t) {
  Guarded g = random_normal(DType::f32, {rows, cols}, 10 + static_cast<unsigned>(t));
  for (std::int64_t i = 0; i < g.size(); ++i) {
    g.set(i, g.at(i) * std::pow(4.0, t) * (1 + static_cast<double>(i / cols % 3)) *
                 (1 + static_cast<double>(i % cols % 5)));
  }
  return g;
}

}  // namespace orchard::testing
