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

// out[i] = value(i, count) over the vectors that cover [begin, end). Four vectors are computed before
// any is stored: a chain of thirty operations, as the activations are, waits for itself, and the
// processor looks ahead over a few such chains only. The lambda needs HWY_ATTR before its body, and
// is copied so that its pointers stay in registers.
template <class T, class Value>
HWY_INLINE void transform(std::int64_t begin, std::int64_t end, T* out, const Value& value) {
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
}

// As transform of [0, n), spread over the pool.
template <class T, class Value>
HWY_INLINE void parallel_transform(std::int64_t n, T* out, const Value& value) {
  parallel_for(n, 4096, [&](std::int64_t begin, std::int64_t end) HWY_ATTR {
    transform(begin, end, out, value);
  });
}

// Four accumulators that start at `start` take turns over the vectors that cover [0, n), because one
// would wait four cycles for each addition: body(i, count, accumulator) returns the accumulator with
// its share. Returns join of the four. The lambdas need HWY_ATTR before their bodies.
template <class Body, class Join>
HWY_INLINE Vector reduce_vectors(std::int64_t n, Vector start, const Body& body, const Join& join) {
  const std::int64_t step = lanes();
  Vector a = start, b = start, c = start, d = start;
  std::int64_t i = 0;
  for (; i + 4 * step <= n; i += 4 * step) {
    a = body(i, step, a);
    b = body(i + step, step, b);
    c = body(i + 2 * step, step, c);
    d = body(i + 3 * step, step, d);
  }
  for (; i + step <= n; i += step) a = body(i, step, a);
  if (i < n) b = body(i, n - i, b);
  return join(join(a, b), join(c, d));
}

// Sum of all lanes of what `body` adds to accumulators of zeros.
template <class Body>
HWY_INLINE float sum_vectors(std::int64_t n, const Body& body) {
  return sum(
      reduce_vectors(n, zero(), body, [](Vector a, Vector b) HWY_ATTR { return hn::Add(a, b); }));
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
