// A step of AdamW: the reference in double, the plain evaluation in float (same_precision.h).
#pragma once

#include <cmath>
#include <vector>

#include "kernels/optimizer/optimizer.h"

namespace orchard::testing {

struct AdamWHyper {
  double lr = 1e-2, beta1 = 0.9f, beta2 = 0.95f, epsilon = 1e-8f, decay = 0.1f, scale = 0.5;
};

template <class Real>
struct AdamWState {
  std::vector<Real> w, m, v;
};

template <class Real>
void adamw_reference(AdamWState<Real>& s, const std::vector<Real>& gradients, const AdamWHyper& h,
                     int t) {
  const Real beta1 = h.beta1, beta2 = h.beta2, lr = h.lr, decay = h.decay;
  // 1 - β^t in double: fp32 would lose half its digits where t is small and β near one.
  const Real correction1 = 1 - std::pow(h.beta1, t), correction2 = 1 - std::pow(h.beta2, t);
  for (std::size_t i = 0; i < s.w.size(); ++i) {
    const Real g = gradients[i] * static_cast<Real>(h.scale);
    s.m[i] = beta1 * s.m[i] + (1 - beta1) * g;
    s.v[i] = beta2 * s.v[i] + (1 - beta2) * g * g;
    const Real m_hat = s.m[i] / correction1, v_hat = s.v[i] / correction2;
    s.w[i] -= lr * m_hat / (std::sqrt(v_hat) + static_cast<Real>(h.epsilon)) + lr * decay * s.w[i];
  }
}

}  // namespace orchard::testing
