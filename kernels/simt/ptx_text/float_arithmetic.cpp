// Arithmetic of floats (PTX ISA, "Floating Point Instructions"). Without a rounding of its own an
// instruction rounds to nearest. Approximations are rounded correctly here, which lies within what
// PTX says of their error.
#include <cmath>
#include <cstdint>

#include "kernels/simt/ptx_text/opcodes.h"

namespace orchard::simt::ptx {
namespace {

template <class T>
void add_sums(Opcodes& to, const std::string& type) {
  to.add("add." + type, [](T a, T b) { return a + b; });
  to.add("sub." + type, [](T a, T b) { return a - b; });
  to.add("mul." + type, [](T a, T b) { return a * b; });
  to.add("fma.rn." + type, [](T a, T b, T c) { return std::fma(a, b, c); });
  to.add("div.rn." + type, [](T a, T b) { return a / b; });
  to.add("rcp.rn." + type, [](T a) { return T{1} / a; });
  to.add("sqrt.rn." + type, [](T a) { return std::sqrt(a); });
  to.add("neg." + type, [](T a) { return -a; });
  to.add("abs." + type, [](T a) { return std::abs(a); });
  // Of a number and a NaN, the number.
  to.add("min." + type, [](T a, T b) { return std::fmin(a, b); });
  to.add("max." + type, [](T a, T b) { return std::fmax(a, b); });
}

// The largest float that is not above a · b + c.
float fused_round_down(float a, float b, float c) {
  const double product = static_cast<double>(a) * b;  // exact
  const double sum = product + c;
  if (!std::isfinite(sum)) return static_cast<float>(sum);
  // What `sum` lacks of the exact value (two-sum).
  const double tail = sum - product;
  const double error = (product - (sum - tail)) + (static_cast<double>(c) - tail);
  const auto nearest = static_cast<float>(sum);
  const bool is_above = nearest > sum || (static_cast<double>(nearest) == sum && error < 0);
  return is_above ? std::nextafter(nearest, -INFINITY) : nearest;
}

}  // namespace

void add_float_arithmetic(Opcodes& to) {
  add_sums<float>(to, "f32");
  add_sums<double>(to, "f64");
  to.add("fma.rm.f32", [](float a, float b, float c) { return fused_round_down(a, b, c); });
  // A quotient by more than 2^126 is 0.
  to.add("div.approx.f32", [](float a, float b) {
    const bool is_huge = std::abs(b) > 0x1p126f && std::isfinite(b);
    return is_huge && std::isfinite(a) ? std::copysign(0.0f, a) * std::copysign(1.0f, b) : a / b;
  });
  to.add("rsqrt.approx.f32",
         [](float a) { return static_cast<float>(1.0 / std::sqrt(static_cast<double>(a))); });
  to.add("ex2.approx.ftz.f32", [](float a) {
    const float power = std::exp2(a);
    return power < 0x1p-126f ? 0.0f : power;
  });
}

}  // namespace orchard::simt::ptx
