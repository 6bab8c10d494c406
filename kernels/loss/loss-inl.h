// Passes over a row of logits, and what is left of its gradient where there is no target. Include
// like simd-inl.h.
#if defined(ORCHARD_KERNELS_LOSS_LOSS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ORCHARD_KERNELS_LOSS_LOSS_INL_H_
#undef ORCHARD_KERNELS_LOSS_LOSS_INL_H_
#else
#define ORCHARD_KERNELS_LOSS_LOSS_INL_H_
#endif

#include <hwy/cache_control.h>

#include <cstring>
#include <limits>

#include "kernels/cpu/loops-inl.h"
#include "kernels/cpu/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace orchard::cpu::HWY_NAMESPACE {

inline float maximum_of(const float* x, std::int64_t count) {
  // Finite, so that a row of masked tokens (-inf) does not meet -inf - -inf.
  constexpr float lowest = std::numeric_limits<float>::lowest();
  const auto larger = [](Vector a, Vector b) HWY_ATTR { return hn::Max(a, b); };
  const Vector maximum = reduce_vectors(
      count, set(lowest),
      [&](std::int64_t i, std::int64_t n, Vector so_far)
          HWY_ATTR { return hn::Max(so_far, first_lanes(load(x + i, n), n, lowest)); },
      larger);
  return hn::GetLane(hn::MaxOfLanes(Floats(), maximum));
}

// Σ exp(x - maximum); the terms go to `out` if it is given, which may be x. `next`, as long as x, is
// fetched meanwhile: the pass that finds its maximum would wait for memory, this one computes.
inline float sum_of_exponentials(const float* x, std::int64_t count, float maximum, float* out,
                                 const float* next) {
  return sum_vectors(count, [=](std::int64_t i, std::int64_t n, Vector total) HWY_ATTR {
    hwy::Prefetch(next + i);
    const Vector term = exp_nonpositive(hn::Sub(load(x + i, n), set(maximum)));
    if (out) store(term, out + i, n);
    return hn::Add(total, first_lanes(term, n));
  });
}

// d_logits = factor · exponentials - scale · [target]; `exponentials` may be d_logits. A target
// outside [0, count) is not among these columns.
template <class T>
void write_gradient(const float* exponentials, std::int64_t count, std::int64_t target,
                    float factor, float scale, T* d_logits) {
  const bool has_target = target >= 0 && target < count;
  const float at_target = has_target ? exponentials[target] * factor - scale : 0;
  transform(0, count, d_logits, [=](std::int64_t i, std::int64_t n) HWY_ATTR {
    return hn::Mul(load(exponentials + i, n), set(factor));
  });
  if (has_target) store(set(at_target), d_logits + target, 1);
}

inline void write_zero_gradient(const Tensor& d_logits, std::int64_t row) {
  const Tensor gradient = d_logits.slice(row, 1);
  std::memset(gradient.raw(), 0, gradient.size_bytes());
}

}  // namespace orchard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
