// The input row of RMSNorm and LayerNorm: x, or the residual stream x + delta. Include like
// simd-inl.h.
#if defined(ORCHARD_KERNELS_NORM_RESIDUAL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ORCHARD_KERNELS_NORM_RESIDUAL_INL_H_
#undef ORCHARD_KERNELS_NORM_RESIDUAL_INL_H_
#else
#define ORCHARD_KERNELS_NORM_RESIDUAL_INL_H_
#endif

#include "kernels/cpu/loops-inl.h"

HWY_BEFORE_NAMESPACE();
namespace orchard::cpu::HWY_NAMESPACE {

// Calls body(vector, count) along row `row` of op.x, or of op.x + op.delta, which it stores in
// op.sum on the way. Returns the row, which the next pass finds in the L1 cache. Unused lanes are
// zero.
template <class T, class Forward, class Body>
HWY_INLINE const T* read_row(const Forward& op, std::int64_t row, const Body& body) {
  const std::int64_t cols = op.x.dim(1);
  const T* const x = row_of<T>(op.x, row, cols);
  const T* const delta = row_of<T>(op.delta, row, cols);
  T* const sum = row_of<T>(op.sum, row, cols);
  if (!delta) {
    for_each_vector(cols,
                    [&](std::int64_t i, std::int64_t n) HWY_ATTR { body(load(x + i, n), n); });
    return x;
  }
  for_each_vector(cols, [&](std::int64_t i, std::int64_t n) HWY_ATTR {
    store(hn::Add(load(x + i, n), load(delta + i, n)), sum + i, n);
    body(load(sum + i, n), n);  // as stored: backward sees the rounded sum
  });
  return sum;
}

}  // namespace orchard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
