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

// 16 vector registers instead of 32.
constexpr bool few_registers = HWY_ARCH_X86 && HWY_TARGET != HWY_AVX3 && HWY_TARGET != HWY_AVX3_DL;

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

// AVX512-BF16, for which Highway 1.0.3 has no target: asked for when the program runs, reached through
// the assembler. It rounds in one instruction instead of nine, with the same results but for
// subnormal numbers, which it takes for zero.
#define ORCHARD_ASSEMBLES_AVX512_BF16 \
  ((HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL) && __GNUC__)
#if ORCHARD_ASSEMBLES_AVX512_BF16
HWY_INLINE bool has_avx512_bf16() {
  return __builtin_cpu_supports("avx512bf16") != 0;
}
HWY_INLINE __mmask16 subnormal_lanes(Vector v) {
  return _mm512_fpclass_ps_mask(v.raw, 0x20);
}
#endif

// The nearest bf16 of each lane.
HWY_INLINE hn::Vec<Words> to_words(Vector v) {
#if ORCHARD_ASSEMBLES_AVX512_BF16
  if (has_avx512_bf16() && HWY_LIKELY(subnormal_lanes(v) == 0)) {
    __m256i words;
    __asm__("vcvtneps2bf16 %1, %0" : "=v"(words) : "v"(v.raw));
    return hn::Vec<Words>{words};
  }
#endif
  const hn::Rebind<std::uint32_t, Floats> d32;
  const auto bits = hn::BitCast(d32, v);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(d32, 1u));
  const auto rounded = hn::Add(hn::Add(bits, hn::Set(d32, 0x7fffu)), odd);
  // The carry could turn a NaN into an infinity: quieten NaNs instead of rounding them.
  const auto is_nan = hn::RebindMask(d32, hn::IsNaN(v));
  const auto quiet = hn::Or(bits, hn::Set(d32, 0x00400000u));
  return hn::TruncateTo(Words(), hn::ShiftRight<16>(hn::IfThenElse(is_nan, quiet, rounded)));
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

// Two vectors that follow each other.
HWY_INLINE void store_two(Vector first, Vector second, float* p) {
  store(first, p);
  store(second, p + lanes());
}

HWY_INLINE void store_two(Vector first, Vector second, bf16* p) {
#if ORCHARD_ASSEMBLES_AVX512_BF16
  if (has_avx512_bf16() && HWY_LIKELY((subnormal_lanes(first) | subnormal_lanes(second)) == 0)) {
    __m512i words;
    __asm__("vcvtne2ps2bf16 %1, %2, %0" : "=v"(words) : "v"(first.raw), "v"(second.raw));
    _mm512_storeu_si512(p, words);
    return;
  }
#endif
  store(first, p);
  store(second, p + lanes());
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
