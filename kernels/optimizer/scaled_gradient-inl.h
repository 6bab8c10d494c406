// The gradient of a parameter as an optimizer sees it. Compiled once per instruction set: no include
// guard of the usual kind.
#if defined(ORCHARD_SCALED_GRADIENT_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef ORCHARD_SCALED_GRADIENT_INL_H
#undef ORCHARD_SCALED_GRADIENT_INL_H
#else
#define ORCHARD_SCALED_GRADIENT_INL_H
#endif

#include <cmath>

#include "kernels/cpu/loops-inl.h"

HWY_BEFORE_NAMESPACE();
namespace orchard::cpu::HWY_NAMESPACE {

class ScaledGradient {
 public:
  // Of any of the operations.
  template <class Operation>
  explicit ScaledGradient(const Operation& op)
      : gradients_(op.gradients.template data<float>()),
        scale_(op.gradient_scale ? *op.gradient_scale.template data<float>() : 1.0f) {}

  bool is_usable() const { return std::isfinite(scale_); }
  // Elements [i, i + n).
  HWY_INLINE Vector operator()(std::int64_t i, std::int64_t n) const {
    return hn::Mul(load(gradients_ + i, n), set(scale_));
  }

 private:
  const float* gradients_;
  float scale_;
};

}  // namespace orchard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
