// Loops over vectors that several operations share. Include like simd-inl.h.
#if defined(ORCHARD_KERNELS_CPU_LOOPS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ORCHARD_KERNELS_CPU_LOOPS_INL_H_
#undef ORCHARD_KERNELS_CPU_LOOPS_INL_H_
#else
#define ORCHARD_KERNELS_CPU_LOOPS_INL_H_
#endif

#include "kernels/core/tensor.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace orchard::cpu::HWY_NAMESPACE {

// As for_each_vector, spread over the pool. The lambda needs HWY_ATTR before its body.
template <class Body>
HWY_INLINE void parallel_vectors(std::int64_t n, const Body& body) {
  // 4096 elements are a few pages: enough to pay for handing them to a thread.
  parallel_for(n, 4096, [&](std::int64_t begin, std::int64_t end) HWY_ATTR {
    for_each_vector(end - begin,
                    [&](std::int64_t i, std::int64_t count) HWY_ATTR { body(begin + i, count); });
  });
}

// out[i] = value(i, count) over the vectors that cover [0, n), spread over the pool. Four vectors are
// computed before any is stored: a chain of thirty operations, as the activations are, waits for
// itself, and the processor looks ahead over a few such chains only. The lambda needs HWY_ATTR
// before its body, and is copied so that its pointers stay in registers.
template <class T, class Value>
HWY_INLINE void parallel_transform(std::int64_t n, T* out, const Value& value) {
  parallel_for(n, 4096, [&](std::int64_t begin, std::int64_t end) HWY_ATTR {
    const Value own = value;
    const std::int64_t step = lanes();
    std::int64_t i = begin;
    for (; i + 4 * step <= end; i += 4 * step) {
      const Vector a = own(i, step), b = own(i + step, step);
      const Vector c = own(i + 2 * step, step), d = own(i + 3 * step, step);
      store_two(a, b, out + i);
      store_two(c, d, out + i + 2 * step);
    }
    for (; i < end; i += step) {
      const std::int64_t count = std::min(step, end - i);
      store(own(i, count), out + i, count);
    }
  });
}

// Sum of all lanes of body(i, count, accumulator) over the vectors that cover [0, n), where the
// body returns the accumulator with its share added. Four accumulators take turns, because one
// would wait four cycles for each addition. The lambda needs HWY_ATTR before its body.
template <class Body>
HWY_INLINE float sum_vectors(std::int64_t n, const Body& body) {
  const std::int64_t step = lanes();
  Vector a = zero(), b = zero(), c = zero(), d = zero();
  std::int64_t i = 0;
  for (; i + 4 * step <= n; i += 4 * step) {
    a = body(i, step, a);
    b = body(i + step, step, b);
    c = body(i + 2 * step, step, c);
    d = body(i + 3 * step, step, d);
  }
  for (; i + step <= n; i += step) a = body(i, step, a);
  if (i < n) b = body(i, n - i, b);
  return sum(hn::Add(hn::Add(a, b), hn::Add(c, d)));
}

// `v` with the lanes from `count` on set to `rest`.
HWY_INLINE Vector first_lanes(Vector v, std::int64_t count, float rest = 0) {
  if (count == lanes()) return v;
  return hn::IfThenElse(hn::FirstN(Floats(), static_cast<std::size_t>(count)), v, set(rest));
}

// Row `row` of a tensor whose rows have `cols` elements; nullptr for an absent tensor.
template <class T, class Void>
HWY_INLINE auto row_of(const BasicTensor<Void>& tensor, std::int64_t row, std::int64_t cols) {
  auto* const data = tensor.template data<T>();
  return data ? data + row * cols : nullptr;
}

}  // namespace orchard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
