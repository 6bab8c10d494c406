// Vectors of floats over f32 and bf16 memory, for the files that Highway compiles once per
// instruction set. Include inside the target's translation unit, after hwy/highway.h.
//
// Arithmetic is always fp32. A bf16 is widened on load and rounded to nearest even on store
// (Highway 1.0.3's own conversion truncates). Tails are masked where the target's masks suppress
// faults, and go through a stack buffer elsewhere, so that nothing outside the row is touched.
#if defined(ORCHARD_KERNELS_CPU_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ORCHARD_KERNELS_CPU_SIMD_INL_H_
#undef ORCHARD_KERNELS_CPU_SIMD_INL_H_
#else
#define ORCHARD_KERNELS_CPU_SIMD_INL_H_
#endif

#include <cstdint>

#include "hwy/highway.h"
#include "kernels/core/dtype.h"

HWY_BEFORE_NAMESPACE();
namespace orchard::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using Floats = hn::ScalableTag<float>;
using Vector = hn::Vec<Floats>;

HWY_INLINE std::int64_t lanes() {
  return static_cast<std::int64_t>(hn::Lanes(Floats()));
}

HWY_INLINE Vector load(const float* p) {
  return hn::LoadU(Floats(), p);
}

using Words = hn::Rebind<std::uint16_t, Floats>;

HWY_INLINE Vector to_floats(hn::Vec<Words> words) {
  const hn::Rebind<std::uint32_t, Floats> d32;
  return hn::BitCast(Floats(), hn::ShiftLeft<16>(hn::PromoteTo(d32, words)));
}

// The nearest bf16 of each lane in the upper half of its bits; the lower half is anything.
HWY_INLINE hn::Vec<hn::Rebind<std::uint32_t, Floats>> round_upper_half(Vector v) {
  const hn::Rebind<std::uint32_t, Floats> d32;
  const auto bits = hn::BitCast(d32, v);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(d32, 1u));
  const auto rounded = hn::Add(hn::Add(bits, hn::Set(d32, 0x7fffu)), odd);
  // The carry could turn a NaN into an infinity: quieten NaNs instead of rounding them.
  const auto is_nan = hn::RebindMask(d32, hn::IsNaN(v));
  const auto quiet = hn::Or(bits, hn::Set(d32, 0x00400000u));
  return hn::IfThenElse(is_nan, quiet, rounded);
}

HWY_INLINE hn::Vec<Words> to_words(Vector v) {
  return hn::TruncateTo(Words(), hn::ShiftRight<16>(round_upper_half(v)));
}

HWY_INLINE Vector load(const bf16* p) {
  return to_floats(hn::LoadU(Words(), reinterpret_cast<const std::uint16_t*>(p)));
}

HWY_INLINE void store(Vector v, float* p) {
  hn::StoreU(v, Floats(), p);
}

HWY_INLINE void store(Vector v, bf16* p) {
  hn::StoreU(to_words(v), Words(), reinterpret_cast<std::uint16_t*>(p));
}

#if HWY_MEM_OPS_MIGHT_FAULT
template <class T>
HWY_INLINE Vector load_tail(const T* p, std::int64_t count) {
  T buffer[HWY_MAX_BYTES / sizeof(float)] = {};
  for (std::int64_t i = 0; i < count; ++i) buffer[i] = p[i];
  return load(buffer);
}

template <class T>
HWY_INLINE void store_tail(Vector v, T* p, std::int64_t count) {
  T buffer[HWY_MAX_BYTES / sizeof(float)];
  store(v, buffer);
  for (std::int64_t i = 0; i < count; ++i) p[i] = buffer[i];
}
#else
HWY_INLINE Vector load_tail(const float* p, std::int64_t count) {
  return hn::MaskedLoad(hn::FirstN(Floats(), static_cast<std::size_t>(count)), Floats(), p);
}

HWY_INLINE Vector load_tail(const bf16* p, std::int64_t count) {
  return to_floats(hn::MaskedLoad(hn::FirstN(Words(), static_cast<std::size_t>(count)), Words(),
                                  reinterpret_cast<const std::uint16_t*>(p)));
}

HWY_INLINE void store_tail(Vector v, float* p, std::int64_t count) {
  hn::BlendedStore(v, hn::FirstN(Floats(), static_cast<std::size_t>(count)), Floats(), p);
}

HWY_INLINE void store_tail(Vector v, bf16* p, std::int64_t count) {
  hn::BlendedStore(to_words(v), hn::FirstN(Words(), static_cast<std::size_t>(count)), Words(),
                   reinterpret_cast<std::uint16_t*>(p));
}
#endif

// The first `count` elements; the other lanes are zero.
template <class T>
HWY_INLINE Vector load(const T* p, std::int64_t count) {
  return count == lanes() ? load(p) : load_tail(p, count);
}

template <class T>
HWY_INLINE void store(Vector v, T* p, std::int64_t count) {
  count == lanes() ? store(v, p) : store_tail(v, p, count);
}

// Calls body(i, count) for the vectors that cover [0, n): count is lanes() for all but the last.
// The lambda needs HWY_ATTR before its body.
template <class Body>
HWY_INLINE void for_each_vector(std::int64_t n, const Body& body) {
  const std::int64_t step = lanes();
  std::int64_t i = 0;
  for (; i + step <= n; i += step) body(i, step);
  if (i < n) body(i, n - i);
}

HWY_INLINE Vector zero() {
  return hn::Zero(Floats());
}
HWY_INLINE Vector set(float value) {
  return hn::Set(Floats(), value);
}
HWY_INLINE float sum(Vector v) {
  return hn::GetLane(hn::SumOfLanes(Floats(), v));
}

}  // namespace orchard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
