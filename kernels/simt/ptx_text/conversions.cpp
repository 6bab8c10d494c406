// Moves and conversions (PTX ISA, "Data Movement and Conversion Instructions": mov, cvt, cvta).
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels/core/dtype.h"
#include "kernels/simt/ptx_text/opcodes.h"

namespace orchard::simt::ptx {
namespace {

using std::int16_t, std::int32_t, std::int64_t, std::uint16_t, std::uint32_t, std::uint64_t;

template <class T>
void add_moves(Opcodes& to, std::initializer_list<const char*> types) {
  for (const char* const type : types) to.add(std::string("mov.") + type, [](T a) { return a; });
}

// To an integer: toward zero, held within its range, 0 for a NaN.
template <class To, class From>
To truncate(From value) {
  if (std::isnan(value)) return 0;
  const From whole = std::trunc(value);
  // The maximum itself may be no float; the next power of two is.
  if (whole >= std::ldexp(From{1}, std::numeric_limits<To>::digits)) {
    return std::numeric_limits<To>::max();
  }
  if (whole < static_cast<From>(std::numeric_limits<To>::min())) {
    return std::numeric_limits<To>::min();
  }
  return static_cast<To>(whole);
}

// The source may be a wider register than its type, which then is its lower part.
template <class To, class From>
void add_integer(Opcodes& to, const std::string& types) {
  const std::string_view letters = "hwd";
  const auto letter_of = [](std::size_t bytes) { return bytes == 8 ? 2u : bytes == 4 ? 1u : 0u; };
  for (const char source : letters.substr(letter_of(sizeof(From)))) {
    to.add("cvt." + types, std::string{'=', letters[letter_of(sizeof(To))], source},
           [](Frame& frame, const Instruction& i) {
             frame.write(frame.operand(i, 0),
                         static_cast<To>(frame.read<From>(frame.operand(i, 1))));
           });
  }
}

template <class From>
void add_rounding(Opcodes& to, const std::string& from) {
  to.add("cvt.rn.f32." + from, [](From a) { return static_cast<float>(a); });
  to.add("cvt.rn.f64." + from, [](From a) { return static_cast<double>(a); });
}

template <class From>
void add_truncation(Opcodes& to, const std::string& from) {
  to.add("cvt.rzi.s32." + from, [](From a) { return truncate<int32_t>(a); });
  to.add("cvt.rzi.u32." + from, [](From a) { return truncate<uint32_t>(a); });
  to.add("cvt.rzi.s64." + from, [](From a) { return truncate<int64_t>(a); });
  to.add("cvt.rzi.u64." + from, [](From a) { return truncate<uint64_t>(a); });
}

}  // namespace

void add_conversions(Opcodes& to) {
  to.add("mov.pred", [](bool a) { return a; });
  add_moves<uint16_t>(to, {"b16", "u16", "s16"});
  add_moves<uint32_t>(to, {"b32", "u32", "s32", "f32"});
  add_moves<uint64_t>(to, {"b64", "u64", "s64", "f64"});
  // The first of a group is the low part.
  to.add("mov.b32", "=w{hh}", [](Frame& frame, const Instruction& i) {
    const uint32_t high = frame.read<uint16_t>(frame.operand(i, 2));
    frame.write(frame.operand(i, 0), frame.read<uint16_t>(frame.operand(i, 1)) | high << 16);
  });
  to.add("mov.b32", "{=h=h}w", [](Frame& frame, const Instruction& i) {
    const auto value = frame.read<uint32_t>(frame.operand(i, 2));
    frame.write(frame.operand(i, 0), static_cast<uint16_t>(value));
    frame.write(frame.operand(i, 1), static_cast<uint16_t>(value >> 16));
  });
  to.add("mov.b64", "=d{ww}", [](Frame& frame, const Instruction& i) {
    const uint64_t high = frame.read<uint32_t>(frame.operand(i, 2));
    frame.write(frame.operand(i, 0), frame.read<uint32_t>(frame.operand(i, 1)) | high << 32);
  });
  to.add("mov.b64", "{=w=w}d", [](Frame& frame, const Instruction& i) {
    const auto value = frame.read<uint64_t>(frame.operand(i, 2));
    frame.write(frame.operand(i, 0), static_cast<uint32_t>(value));
    frame.write(frame.operand(i, 1), static_cast<uint32_t>(value >> 32));
  });

  add_integer<int64_t, int32_t>(to, "s64.s32");
  add_integer<uint64_t, uint32_t>(to, "u64.u32");
  add_integer<uint32_t, uint64_t>(to, "u32.u64");
  add_integer<uint32_t, uint16_t>(to, "u32.u16");
  add_integer<int32_t, int16_t>(to, "s32.s16");
  add_integer<uint16_t, uint32_t>(to, "u16.u32");
  add_rounding<int32_t>(to, "s32");
  add_rounding<uint32_t>(to, "u32");
  add_rounding<int64_t>(to, "s64");
  add_rounding<uint64_t>(to, "u64");
  add_rounding<uint16_t>(to, "u16");
  add_truncation<float>(to, "f32");
  add_truncation<double>(to, "f64");
  to.add("cvt.f64.f32", [](float a) { return static_cast<double>(a); });
  to.add("cvt.rn.f32.f64", [](double a) { return static_cast<float>(a); });
  to.add("cvt.sat.f32.f32", [](float a) { return a > 0.0f ? std::fmin(a, 1.0f) : 0.0f; });
  // The first source goes to the upper half.
  to.add("cvt.rn.bf16x2.f32", [](float high, float low) {
    return to_bf16(low).bits | static_cast<uint32_t>(to_bf16(high).bits) << 16;
  });

  // Generic addresses are the host's. Those of parameters and of shared memory are offsets.
  to.add("cvta.to.global.u64", [](uint64_t a) { return a; });
  to.add("cvta.global.u64", [](uint64_t a) { return a; });
  to.add("cvta.param.u64", "=dd", [](Frame& frame, const Instruction& i) {
    const auto offset = frame.read<uint64_t>(frame.operand(i, 1));
    frame.write(frame.operand(i, 0), reinterpret_cast<std::uintptr_t>(frame.parameters) + offset);
  });
  to.add("cvta.shared.u64", "=dd", [](Frame& frame, const Instruction& i) {
    const auto offset = frame.read<uint64_t>(frame.operand(i, 1));
    frame.write(frame.operand(i, 0), reinterpret_cast<std::uintptr_t>(frame.shared) + offset);
  });
  to.add("cvta.to.shared.u64", "=dd", [](Frame& frame, const Instruction& i) {
    const auto address = frame.read<uint64_t>(frame.operand(i, 1));
    frame.write(frame.operand(i, 0), address - reinterpret_cast<std::uintptr_t>(frame.shared));
  });
}

}  // namespace orchard::simt::ptx
