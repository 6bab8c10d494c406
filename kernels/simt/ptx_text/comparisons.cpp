// Comparison and selection (PTX ISA, "Comparison and Select Instructions").
#include <cstdint>

#include "kernels/simt/ptx_text/opcodes.h"

namespace orchard::simt::ptx {
namespace {

using std::int16_t, std::int32_t, std::int64_t, std::uint16_t, std::uint32_t, std::uint64_t;

template <class T>
void add_equality(Opcodes& to, const std::string& type) {
  to.add("setp.eq." + type, [](T a, T b) { return a == b; });
  to.add("setp.ne." + type, [](T a, T b) { return a != b; });
}

template <class T>
void add_order(Opcodes& to, const std::string& type) {
  add_equality<T>(to, type);
  to.add("setp.lt." + type, [](T a, T b) { return a < b; });
  to.add("setp.le." + type, [](T a, T b) { return a <= b; });
  to.add("setp.gt." + type, [](T a, T b) { return a > b; });
  to.add("setp.ge." + type, [](T a, T b) { return a >= b; });
}

// With a NaN, the plain relations are false (but .ne, which has no plain form in C) and those with
// "u", for unordered, true.
template <class T>
void add_float_order(Opcodes& to, const std::string& type) {
  to.add("setp.eq." + type, [](T a, T b) { return a == b; });
  to.add("setp.ne." + type, [](T a, T b) { return a < b || a > b; });
  to.add("setp.lt." + type, [](T a, T b) { return a < b; });
  to.add("setp.le." + type, [](T a, T b) { return a <= b; });
  to.add("setp.gt." + type, [](T a, T b) { return a > b; });
  to.add("setp.ge." + type, [](T a, T b) { return a >= b; });
  to.add("setp.equ." + type, [](T a, T b) { return !(a < b || a > b); });
  to.add("setp.neu." + type, [](T a, T b) { return a != b; });
  to.add("setp.ltu." + type, [](T a, T b) { return !(a >= b); });
  to.add("setp.leu." + type, [](T a, T b) { return !(a > b); });
  to.add("setp.gtu." + type, [](T a, T b) { return !(a <= b); });
  to.add("setp.geu." + type, [](T a, T b) { return !(a < b); });
}

template <class T>
void add_selection(Opcodes& to, std::initializer_list<const char*> types) {
  for (const char* const type : types) {
    to.add(std::string("selp.") + type, [](T a, T b, bool p) { return p ? a : b; });
  }
}

}  // namespace

void add_comparisons(Opcodes& to) {
  add_order<int16_t>(to, "s16");
  add_order<int32_t>(to, "s32");
  add_order<int64_t>(to, "s64");
  add_order<uint16_t>(to, "u16");
  add_order<uint32_t>(to, "u32");
  add_order<uint64_t>(to, "u64");
  add_equality<uint16_t>(to, "b16");
  add_equality<uint32_t>(to, "b32");
  add_equality<uint64_t>(to, "b64");
  add_float_order<float>(to, "f32");
  add_float_order<double>(to, "f64");
  add_selection<uint16_t>(to, {"b16", "u16", "s16"});
  add_selection<uint32_t>(to, {"b32", "u32", "s32", "f32"});
  add_selection<uint64_t>(to, {"b64", "u64", "s64", "f64"});
}

}  // namespace orchard::simt::ptx
