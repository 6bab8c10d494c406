// ld, st, atom (PTX ISA, "Data Movement and Conversion Instructions"), one access each, as wide as the
// vector; and membar, which orders them.
#include <cstdint>
#include <cstring>

#include "kernels/simt/ptx_text/addresses.h"
#include "kernels/simt/ptx_text/opcodes.h"

namespace orchard::simt::ptx {
namespace {

using AccessMemory = std::byte* (*)(const Frame&, const Instruction&, std::size_t, std::size_t,
                                    Access);

// Into registers at least as wide as T: integers are extended by their sign.
template <class T, std::size_t n, AccessMemory access_memory>
void load(Frame& frame, const Instruction& i) {
  const std::byte* const from = access_memory(frame, i, 2 * n, n * sizeof(T), Access::read);
  for (std::size_t k = 0; k < n; ++k) {
    T value;
    std::memcpy(&value, from + k * sizeof(T), sizeof(T));
    const std::uint32_t slot = frame.operand(i, 2 * k);
    if constexpr (std::is_integral_v<T>) {
      const std::int64_t wide = static_cast<std::int64_t>(value);
      if (frame.operand(i, 2 * k + 1) == 2) {
        frame.write(slot, wide);
      } else {
        frame.write(slot, static_cast<std::int32_t>(wide));
      }
    } else {
      frame.write(slot, value);
    }
  }
}

template <class T, std::size_t n, AccessMemory access_memory>
void store(Frame& frame, const Instruction& i) {
  constexpr std::size_t address_parts = 3;
  std::byte* const to = access_memory(frame, i, 0, n * sizeof(T), Access::write);
  for (std::size_t k = 0; k < n; ++k) {
    const T value = frame.read<T>(frame.operand(i, address_parts + 2 * k));
    std::memcpy(to + k * sizeof(T), &value, sizeof(T));
  }
}

template <class T, AccessMemory access_memory>
void add_loads(Opcodes& to, const std::string& space, const std::string& type) {
  const auto opcode = [&](const char* vector) {
    return fmt::format("ld.{}{}.{}", space, vector, type);
  };
  to.add(opcode(""), "=xa", load<T, 1, access_memory>);
  to.add(opcode(".v2"), group("=x", 2) + "a", load<T, 2, access_memory>);
  if constexpr (sizeof(T) <= 4) {
    to.add(opcode(".v4"), group("=x", 4) + "a", load<T, 4, access_memory>);
  }
}

template <class T, AccessMemory access_memory>
void add_stores(Opcodes& to, const std::string& space, const std::string& type) {
  const auto opcode = [&](const char* vector) {
    return fmt::format("st.{}{}.{}", space, vector, type);
  };
  to.add(opcode(""), "ax", store<T, 1, access_memory>);
  to.add(opcode(".v2"), fmt::format("a{}", group("x", 2)), store<T, 2, access_memory>);
  if constexpr (sizeof(T) <= 4) {
    to.add(opcode(".v4"), fmt::format("a{}", group("x", 4)), store<T, 4, access_memory>);
  }
}

template <class T>
void add_type(Opcodes& to, const std::string& type) {
  add_loads<T, global_access>(to, "global", type);
  add_loads<T, global_access>(to, "global.nc", type);
  add_loads<T, shared_access>(to, "shared", type);
  add_loads<T, parameter_access>(to, "param", type);
  add_stores<T, global_access>(to, "global", type);
  add_stores<T, global_access>(to, "global.wb", type);
  add_stores<T, shared_access>(to, "shared", type);
}

// Threads run one at a time, so that it is atomic as it stands.
template <std::byte* (*pointer)(const Frame&, const Instruction&, std::size_t)>
void atomic_add(Frame& frame, const Instruction& i) {
  std::byte* const at = pointer(frame, i, 1);
  std::uint32_t before;
  atomic_access(at, sizeof before, frame.where(i));
  std::memcpy(&before, at, sizeof before);
  const std::uint32_t after = before + frame.read<std::uint32_t>(frame.operand(i, 4));
  std::memcpy(at, &after, sizeof after);
  frame.write(frame.operand(i, 0), before);
}

void order_accesses(Frame&, const Instruction&) {
  fence_memory();
}

}  // namespace

void add_memory(Opcodes& to) {
  add_type<std::uint8_t>(to, "u8");
  add_type<std::uint16_t>(to, "u16");
  add_type<std::int16_t>(to, "s16");
  add_type<std::uint32_t>(to, "u32");
  add_type<std::int32_t>(to, "s32");
  add_type<float>(to, "f32");
  add_type<std::uint64_t>(to, "u64");
  add_type<std::int64_t>(to, "s64");
  add_type<double>(to, "f64");
  to.add("atom.global.add.u32", "=waw", atomic_add<global_pointer>);
  to.add("atom.shared.add.u32", "=waw", atomic_add<shared_pointer>);
  to.add("membar.gl", "", order_accesses);
}

}  // namespace orchard::simt::ptx
