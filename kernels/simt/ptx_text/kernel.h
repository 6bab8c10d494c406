// A kernel decoded from PTX: instructions whose operands are places in a thread's registers.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/simt/runtime.h"

namespace orchard::simt::ptx {

struct Frame;
struct Instruction;
using Execute = void (*)(Frame&, const Instruction&);

struct Instruction {
  Execute execute;
  std::uint32_t first;  // of its operands in Kernel::operands
  std::uint32_t line;   // of the PTX text
  std::int32_t guard;   // slot of the predicate, or -1
  bool guard_is_negated;
  std::uint8_t used_bytes;  // of a load (statements.h); 0: all
};

struct Parameter {
  std::size_t offset, bytes;
};

// Registers are words of 32 bits, those of 64 bits are two of them; constants and special registers
// are registers, too, which the image holds from the start. A predicate is 0 or 1.
struct Kernel {
  std::string name;  // as in C++
  std::string file;  // of the PTX text; "file+n": lines count from its line n
  std::vector<Parameter> parameters;
  std::size_t parameter_bytes = 0;
  std::vector<Instruction> code;
  std::vector<std::uint32_t> operands;
  std::vector<std::uint32_t> image;
};

// Slots of the special registers.
enum Special : std::uint32_t {
  tid_x,
  tid_y,
  tid_z,
  ntid_x,
  ntid_y,
  ntid_z,
  ctaid_x,
  ctaid_y,
  ctaid_z,
  nctaid_x,
  nctaid_y,
  nctaid_z,
  laneid,
  special_count
};

// The sums of a wgmma that is in flight (warpgroup_operations.cpp).
struct SumsInFlight {
  std::uint32_t tag;
  std::vector<float> values;
};

// A thread that executes a kernel.
struct Frame {
  const Kernel& kernel;
  std::byte* parameters;  // of the launch; instructions only read them
  std::byte* shared;      // the block's
  std::size_t shared_bytes;
  std::vector<std::uint32_t> registers;
  std::size_t next = 0;  // instruction
  std::vector<SumsInFlight> sums = {};

  std::uint32_t operand(const Instruction& i, std::size_t n) const {
    return kernel.operands[i.first + n];
  }

  template <class T>
  T read(std::uint32_t slot) const {
    if constexpr (std::is_same_v<T, bool>) {
      return registers[slot] != 0;
    } else {
      T value;
      std::memcpy(&value, registers.data() + slot, sizeof(T));
      return value;
    }
  }

  // Values of 16 bits and fewer are extended by zeros.
  template <class T>
  void write(std::uint32_t slot, T value) {
    if constexpr (sizeof(T) < sizeof(std::uint32_t)) registers[slot] = 0;
    std::memcpy(registers.data() + slot, &value, sizeof(T));
  }

  Where where(const Instruction& i) const { return {kernel.file.c_str(), i.line}; }
};

}  // namespace orchard::simt::ptx
