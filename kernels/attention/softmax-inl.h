// The exponential and the online softmax of attention's tiles. Include inside the target's
// translation unit, after hwy/highway.h.
//
// Scores are brought to units of log 2 (times scale·log2(e)), so that the exponential is a power of
// two: x = n + f with n whole and |f| <= 1/2, 2^f by a polynomial, n added to the exponent.
#if defined(ORCHARD_KERNELS_ATTENTION_SOFTMAX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ORCHARD_KERNELS_ATTENTION_SOFTMAX_INL_H_
#undef ORCHARD_KERNELS_ATTENTION_SOFTMAX_INL_H_
#else
#define ORCHARD_KERNELS_ATTENTION_SOFTMAX_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <limits>

#include "hwy/highway.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace orchard::cpu::HWY_NAMESPACE {

constexpr float infinity = std::numeric_limits<float>::infinity();

// 2^x for x <= 127, within 1.5 units in the last place; exactly 1 at 0, and 0 below -126 (a
// denormal result is cut to zero). A NaN stays one. The polynomial is the degree-6 minimax of
// relative error 1.9e-9 on [-1/2, 1/2].
HWY_INLINE Vector power_of_two(Vector x) {
  const Floats d;
  const hn::RebindToSigned<Floats> di;
  // Adding 1.5·2^23 leaves round(x) in the low bits of the sum.
  const Vector magic = set(12582912.0f);
  const Vector shifted = hn::Add(x, magic);
  const Vector f = hn::Sub(x, hn::Sub(shifted, magic));
  Vector p = set(1.53458120e-4f);
  p = hn::MulAdd(p, f, set(1.33999312e-3f));
  p = hn::MulAdd(p, f, set(9.61848896e-3f));
  p = hn::MulAdd(p, f, set(5.55032878e-2f));
  p = hn::MulAdd(p, f, set(0.240226469f));
  p = hn::MulAdd(p, f, set(0.693147206f));
  p = hn::MulAdd(p, f, set(1.0f));
  const auto exponent = hn::ShiftLeft<23>(hn::BitCast(di, shifted));
  const Vector result = hn::BitCast(d, hn::Add(hn::BitCast(di, p), exponent));
  return hn::IfThenZeroElse(hn::Lt(x, set(-126.0f)), result);
}

// Columns [visible, vectors·lanes) of a row of scores become -inf.
HWY_INLINE void mask_row(float* scores, std::int64_t visible, std::int64_t vectors) {
  const Floats d;
  const std::int64_t n = lanes();
  for (std::int64_t v = std::max<std::int64_t>(visible, 0) / n; v < vectors; ++v) {
    const std::int64_t keep = std::clamp<std::int64_t>(visible - v * n, 0, n);
    const auto mask = hn::FirstN(d, static_cast<std::size_t>(keep));
    store(hn::IfThenElse(mask, load(scores + v * n), set(-infinity)), scores + v * n);
  }
}

// What the online softmax knows of one query after some of its keys: the largest score, the sum of
// 2^(score - max) in `lanes` parts, and in `out` the same sum weighted with v.
struct RunningRow {
  float* max;
  float* sums;  // one vector
  float* out;   // out_vectors vectors
};

// Replaces a row of scores by 2^(factor·score - max), in the same memory as T, where max now covers
// this row, too, and brings the running sums to that max. The row has a visible key; before the
// first row max is -inf and the sums are zero.
template <class T>
HWY_INLINE void online_softmax(float* scores, float factor, std::int64_t vectors,
                               const RunningRow& row, std::int64_t out_vectors) {
  const std::int64_t n = lanes();
  const Vector scale = set(factor);
  Vector largest = hn::Mul(load(scores), scale);
  for (std::int64_t v = 1; v < vectors; ++v)
    largest = hn::Max(largest, hn::Mul(load(scores + v * n), scale));
  const float old_max = *row.max;
  const float max = std::max(old_max, hn::GetLane(hn::MaxOfLanes(Floats(), largest)));
  const Vector subtract = set(max);
  Vector sums = load(row.sums);
  if (max != old_max) {
    const Vector shrink = power_of_two(hn::Sub(set(old_max), subtract));
    sums = hn::Mul(sums, shrink);
    for (std::int64_t v = 0; v < out_vectors; ++v) {
      store(hn::Mul(load(row.out + v * n), shrink), row.out + v * n);
    }
    *row.max = max;
  }
  T* const probabilities = reinterpret_cast<T*>(scores);
  for (std::int64_t v = 0; v < vectors; ++v) {
    // Not fused: a score of -inf - or the largest itself - must give exactly 0, or 1.
    const Vector p = power_of_two(hn::Sub(hn::Mul(load(scores + v * n), scale), subtract));
    sums = hn::Add(sums, p);
    store(p, probabilities + v * n);
  }
  store(sums, row.sums);
}

}  // namespace orchard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
