// What AdaFactor in one piece and in parts have in common. Compiled once per instruction set: no
// include guard of the usual kind.
#if defined(ORCHARD_ADAFACTOR_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef ORCHARD_ADAFACTOR_INL_H
#undef ORCHARD_ADAFACTOR_INL_H
#else
#define ORCHARD_ADAFACTOR_INL_H
#endif

#include <algorithm>
#include <cmath>

#include "kernels/optimizer/optimizer.h"
#include "kernels/optimizer/scaled_gradient-inl.h"

HWY_BEFORE_NAMESPACE();
namespace orchard::cpu::HWY_NAMESPACE {

constexpr float regulariser = 1e-30f;  // ε₁ of the paper, added to g²

// The moving averages keep β₂ = 1 - t^-0.8 of what they were (nothing at step 1) and take in the
// rest, which would lose its digits if it were computed from a β₂ near one in fp32.
struct Averaging {
  explicit Averaging(std::int64_t step)
      : keep(static_cast<float>(1.0 - std::pow(static_cast<double>(step), -0.8))),
        rest(static_cast<float>(std::pow(static_cast<double>(step), -0.8))) {}
  float operator()(float before, float value) const { return keep * before + rest * value; }

  float keep, rest;
};

// lr / max(1, rms(u) / threshold): what the raw update of a block of `count` elements is multiplied by.
template <class Operation>
float clipped_lr(const Operation& op, double update_squares, std::int64_t count) {
  const double rms = std::sqrt(update_squares / static_cast<double>(count));
  return static_cast<float>(op.lr / std::max(1.0, rms / op.clip_threshold));
}

// w -= lr·u + weight_decay·w.
template <class Operation>
HWY_INLINE void apply(const Operation& op, std::int64_t i, std::int64_t n, Vector update,
                      float lr) {
  float* const weights = op.weights.template data<float>();
  const Vector w = load(weights + i, n);
  // One rounding of the weight's size.
  const Vector w_new = hn::Sub(w, hn::MulAdd(update, set(lr), hn::Mul(w, set(op.weight_decay))));
  store(w_new, weights + i, n);
  if (op.copy) store(w_new, op.copy.template data<bf16>() + i, n);
}

}  // namespace orchard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
