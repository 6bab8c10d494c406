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

// Row `row` of op.x, or of op.x + op.delta, which is stored in op.sum on the way: the next pass
// finds it in the L1 cache.
template <class T>
struct InputRow {
  const T* data;
  float total;  // of term(v, accumulator) over the row; unused lanes of v are zero
};

template <class T, class Forward, class Term>
HWY_INLINE InputRow<T> read_row(const Forward& op, std::int64_t row, const Term& term) {
  const std::int64_t cols = op.x.dim(1);
  const T* const x = row_of<T>(op.x, row, cols);
  const T* const delta = row_of<T>(op.delta, row, cols);
  T* const sum = row_of<T>(op.sum, row, cols);
  if (!delta) {
    return {x, sum_vectors(cols, [&](std::int64_t i, std::int64_t n, Vector total)
                                     HWY_ATTR { return term(load(x + i, n), total); })};
  }
  return {sum, sum_vectors(cols, [&](std::int64_t i, std::int64_t n, Vector total) HWY_ATTR {
            store(hn::Add(load(x + i, n), load(delta + i, n)), sum + i, n);
            return term(load(sum + i, n), total);  // as stored: backward sees the rounded sum
          })};
}

}  // namespace orchard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
