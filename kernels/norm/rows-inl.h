// What RMSNorm and LayerNorm do alike: the input row of forward, which is x or the residual stream
// x + delta, and the second pass of backward. Include like simd-inl.h.
#if defined(ORCHARD_KERNELS_NORM_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ORCHARD_KERNELS_NORM_ROWS_INL_H_
#undef ORCHARD_KERNELS_NORM_ROWS_INL_H_
#else
#define ORCHARD_KERNELS_NORM_ROWS_INL_H_
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

// One row of backward's operands; d_sum may be absent.
template <class T>
struct GradientRow {
  const T *x, *weight, *d_y, *d_sum;
  T* d_x;
  std::int64_t cols;
};

template <class T, class Backward>
GradientRow<T> gradient_row(const Backward& op, std::int64_t row) {
  const std::int64_t cols = op.x.dim(1);
  return {.x = row_of<T>(op.x, row, cols),
          .weight = op.weight.template data<T>(),
          .d_y = row_of<T>(op.d_y, row, cols),
          .d_sum = row_of<T>(op.d_sum, row, cols),
          .d_x = row_of<T>(op.d_x, row, cols),
          .cols = cols};
}

// d_x = r·(g - mean_g - x̂·mean_dot) + d_sum, where g = d_y·weight and `normalised` gives x̂.
template <class T, class Normalised>
HWY_INLINE void write_d_x(const GradientRow<T>& row, Vector r, Vector mean_g, Vector mean_dot,
                          const Normalised& normalised) {
  for_each_vector(row.cols, [&](std::int64_t i, std::int64_t n) HWY_ATTR {
    const Vector g = hn::Mul(load(row.d_y + i, n), load(row.weight + i, n));
    Vector out = hn::Mul(r, hn::NegMulAdd(normalised(i, n), mean_dot, hn::Sub(g, mean_g)));
    if (row.d_sum) out = hn::Add(out, load(row.d_sum + i, n));
    store(out, row.d_x + i, n);
  });
}

}  // namespace orchard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
