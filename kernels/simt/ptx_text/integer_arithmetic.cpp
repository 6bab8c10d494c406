// Arithmetic and logic of integers and predicates (PTX ISA, "Integer Arithmetic Instructions", "Logic
// and Shift Instructions").
#include <algorithm>
#include <bit>
#include <cstdint>

#include "kernels/simt/ptx_text/opcodes.h"

namespace orchard::simt::ptx {
namespace {

using std::int16_t, std::int32_t, std::int64_t, std::uint16_t, std::uint32_t, std::uint64_t;

// Holds every product of two T.
template <class T>
using Wide = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;

// Sums and products wrap: the same bits for signed and unsigned numbers.
template <class T>
void add_wrapping(Opcodes& to, const std::string& type) {
  using U = std::make_unsigned_t<T>;
  to.add("add." + type, [](U a, U b) { return static_cast<U>(a + b); });
  to.add("sub." + type, [](U a, U b) { return static_cast<U>(a - b); });
  to.add("mul.lo." + type, [](U a, U b) { return static_cast<U>(a * b); });
  to.add("mad.lo." + type, [](U a, U b, U c) { return static_cast<U>(a * b + c); });
  to.add("mul.hi." + type, [](T a, T b) {
    return static_cast<U>(static_cast<Wide<T>>(a) * static_cast<Wide<T>>(b) >> (8 * sizeof(T)));
  });
  to.add("min." + type, [](T a, T b) { return std::min(a, b); });
  to.add("max." + type, [](T a, T b) { return std::max(a, b); });
  to.add("neg." + type, [](U a) { return static_cast<U>(-a); });
}

// What a division by zero gives is not specified, nor that of the least number by -1; these are all
// ones, and a remainder as if by 1.
template <class T>
void add_division(Opcodes& to, const std::string& type) {
  to.add("div." + type, [](T a, T b) {
    if (b == 0) return static_cast<T>(-1);
    return static_cast<T>(static_cast<Wide<T>>(a) / b);
  });
  to.add("rem." + type, [](T a, T b) {
    if (b == 0) return static_cast<T>(0);
    return static_cast<T>(static_cast<Wide<T>>(a) % b);
  });
}

// A shift by more than the width is one by the width.
template <class T>
void add_right_shift(Opcodes& to, const std::string& type) {
  to.add("shr." + type, [](T a, uint32_t by) {
    constexpr uint32_t width = 8 * sizeof(T);
    if (std::is_unsigned_v<T> && by >= width) return T{0};
    return static_cast<T>(a >> std::min(by, width - 1));
  });
}

template <class T>
void add_logic(Opcodes& to, const std::string& type) {
  to.add("and." + type, [](T a, T b) { return static_cast<T>(a & b); });
  to.add("or." + type, [](T a, T b) { return static_cast<T>(a | b); });
  to.add("xor." + type, [](T a, T b) { return static_cast<T>(a ^ b); });
}

template <class T>
void add_bits(Opcodes& to, const std::string& type) {
  add_logic<T>(to, type);
  to.add("not." + type, [](T a) { return static_cast<T>(~a); });
  to.add("shl." + type,
         [](T a, uint32_t by) { return by >= 8 * sizeof(T) ? T{0} : static_cast<T>(a << by); });
}

}  // namespace

void add_integer_arithmetic(Opcodes& to) {
  add_wrapping<int32_t>(to, "s32");
  add_wrapping<uint32_t>(to, "u32");
  add_wrapping<int64_t>(to, "s64");
  add_wrapping<uint64_t>(to, "u64");
  to.add("mul.wide.s32", [](int32_t a, int32_t b) { return int64_t{a} * b; });
  to.add("mul.wide.u32", [](uint32_t a, uint32_t b) { return uint64_t{a} * b; });
  to.add("mul.wide.u16", [](uint16_t a, uint16_t b) { return uint32_t{a} * b; });
  to.add("mad.wide.s32", [](int32_t a, int32_t b, uint64_t c) {
    return static_cast<uint64_t>(int64_t{a} * b) + c;
  });
  to.add("mad.wide.u32", [](uint32_t a, uint32_t b, uint64_t c) { return uint64_t{a} * b + c; });

  add_division<int32_t>(to, "s32");
  add_division<uint32_t>(to, "u32");
  add_division<int64_t>(to, "s64");
  add_division<uint64_t>(to, "u64");

  add_right_shift<int32_t>(to, "s32");
  add_right_shift<uint32_t>(to, "u32");
  add_right_shift<int64_t>(to, "s64");
  add_right_shift<uint64_t>(to, "u64");

  add_logic<bool>(to, "pred");
  to.add("not.pred", [](bool a) { return !a; });
  add_bits<uint16_t>(to, "b16");
  add_bits<uint32_t>(to, "b32");
  add_bits<uint64_t>(to, "b64");

  to.add("popc.b32", [](uint32_t a) { return static_cast<uint32_t>(std::popcount(a)); });
  to.add("brev.b32", [](uint32_t a) {
    uint32_t out = 0;
    for (unsigned bit = 0; bit < 32; ++bit) out |= (a >> bit & 1) << (31 - bit);
    return out;
  });
  // How far to shift to bring the highest bit to the top.
  to.add("bfind.shiftamt.u32",
         [](uint32_t a) { return a == 0 ? ~0u : static_cast<uint32_t>(std::countl_zero(a)); });
}

}  // namespace orchard::simt::ptx
