// Vector functions of stated accuracy. Include like simd-inl.h.
#if defined(ORCHARD_KERNELS_CPU_MATH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ORCHARD_KERNELS_CPU_MATH_INL_H_
#undef ORCHARD_KERNELS_CPU_MATH_INL_H_
#else
#define ORCHARD_KERNELS_CPU_MATH_INL_H_
#endif

#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace orchard::cpu::HWY_NAMESPACE {

// exp(x) within 2 units in the last place. Infinite above 88.37, a little before 2^128; zero below
// -87.33, where the result would be subnormal, so exp(-inf) = 0. A NaN stays a NaN (Highway 1.0.3's
// own Exp turns it into zero, which would hide a diverged run).
//
// Cody-Waite reduction x = n·ln2 + r, |r| <= ln2/2, and the polynomial of Cephes' expf.
HWY_INLINE Vector exp(Vector x) {
  const Floats d;
  const hn::RebindToUnsigned<Floats> bits;
  // Not Min: with a NaN, its result differs between instruction sets.
  const Vector limit = set(89.0f);
  const Vector bounded = hn::IfThenElse(hn::Gt(x, limit), limit, x);
  // Adding 1.5·2^23 leaves the rounded product in the low bits of the sum.
  const Vector shifter = set(12582912.0f);
  const Vector shifted = hn::MulAdd(bounded, set(1.44269504f), shifter);
  const Vector n = hn::Sub(shifted, shifter);
  // ln2 in two parts, the first short enough for n·0.693359375 to be exact.
  const Vector r =
      hn::NegMulAdd(n, set(-2.12194440e-4f), hn::NegMulAdd(n, set(0.693359375f), bounded));
  Vector p = set(1.9875691500e-4f);
  p = hn::MulAdd(p, r, set(1.3981999507e-3f));
  p = hn::MulAdd(p, r, set(8.3334519073e-3f));
  p = hn::MulAdd(p, r, set(4.1665795894e-2f));
  p = hn::MulAdd(p, r, set(1.6666665459e-1f));
  p = hn::MulAdd(p, r, set(5.0000001201e-1f));
  p = hn::MulAdd(p, hn::Mul(r, r), hn::Add(r, set(1.0f)));
  const auto exponent =
      hn::Add(hn::ShiftLeft<23>(hn::BitCast(bits, shifted)), hn::Set(bits, 0x3f800000u));
  const Vector result = hn::Mul(p, hn::BitCast(d, exponent));
  return hn::IfThenZeroElse(hn::Lt(x, set(-87.33f)), result);
}

// exp(x) for x <= 0, as a term of a softmax: its relative error is below 2^-22.9 from -4 on and below
// 2^-19.6 at the far end. Zero below -87.33; a NaN stays a NaN. Four fifths of exp's instructions: the
// reduction is to a power of two, x·log2(e) = n + f, in one step whose error grows with x, and 2^f the
// polynomial of degree 6 that is exact at 0 and at the Chebyshev nodes of degree 6 (error below 1e-8).
HWY_INLINE Vector exp_nonpositive(Vector x) {
  const Floats d;
  const hn::RebindToUnsigned<Floats> bits;
  const Vector log2e = set(1.44269504f), shifter = set(12582912.0f);
  const Vector shifted = hn::MulAdd(x, log2e, shifter);
  const Vector f = hn::MulSub(x, log2e, hn::Sub(shifted, shifter));
  Vector p = set(1.54531634e-4f);
  p = hn::MulAdd(p, f, set(1.33908633e-3f));
  p = hn::MulAdd(p, f, set(9.61808302e-3f));
  p = hn::MulAdd(p, f, set(5.55035695e-2f));
  p = hn::MulAdd(p, f, set(0.240226507f));
  p = hn::MulAdd(p, f, set(0.693147182f));
  p = hn::MulAdd(p, f, set(1.0f));
  const auto exponent =
      hn::Add(hn::ShiftLeft<23>(hn::BitCast(bits, shifted)), hn::Set(bits, 0x3f800000u));
  return hn::IfThenZeroElse(hn::Lt(x, set(-87.33f)), hn::Mul(p, hn::BitCast(d, exponent)));
}

// 1 / (1 + exp(-x)) for an x·σ(x) or a gradient that is stored as T; exactly 0 and 1 at the far ends.
// A NaN may give a number: what is stored has x as a factor, too.
template <class T>
HWY_INLINE Vector sigmoid(Vector x);

// Within 3 units in the last place; a NaN stays one.
template <>
HWY_INLINE Vector sigmoid<float>(Vector x) {
  return hn::Div(set(1.0f), hn::Add(set(1.0f), exp(hn::Neg(x))));
}

// Within 2^-17, where rounding to bf16 errs by up to 2^-8. 2^f is the polynomial of degree 4 that is
// exact at 0 and whose largest relative error on [-1/2, 1/2], 2.9e-6, is least.
template <>
HWY_INLINE Vector sigmoid<bf16>(Vector x) {
  const Floats d;
  const hn::RebindToUnsigned<Floats> bits;
  // -x in units of log 2. At 128, a whole number, the exponential is exactly infinite.
  const Vector power = hn::Max(set(-126.0f), hn::Min(set(128.0f), hn::Mul(x, set(-1.44269504f))));
  const Vector shifter = set(12582912.0f);
  const Vector shifted = hn::Add(power, shifter);
  const Vector f = hn::Sub(power, hn::Sub(shifted, shifter));
  Vector p = set(9.58285313e-3f);
  p = hn::MulAdd(p, f, set(5.590642497e-2f));
  p = hn::MulAdd(p, f, set(0.2402409861f));
  p = hn::MulAdd(p, f, set(0.6931241934f));
  p = hn::MulAdd(p, f, set(1.0f));
  const auto exponent = hn::ShiftLeft<23>(hn::BitCast(bits, shifted));
  const Vector exponential = hn::BitCast(d, hn::Add(hn::BitCast(bits, p), exponent));
  return hn::Div(set(1.0f), hn::Add(set(1.0f), exponential));
}

}  // namespace orchard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
