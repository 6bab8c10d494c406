// Where the operands of memory instructions point, checked and counted with the instruction's width.
#pragma once

#include <cstdint>

#include "kernels/core/error.h"
#include "kernels/simt/ptx_text/kernel.h"

namespace orchard::simt::ptx {

// The value of an address operand whose parts begin at operand `n`: base slot, its words, offset.
inline std::uint64_t address_value(const Frame& frame, const Instruction& i, std::size_t n) {
  const std::uint32_t base = frame.operand(i, n);
  const std::uint64_t value = frame.operand(i, n + 1) == 2 ? frame.read<std::uint64_t>(base)
                                                           : frame.read<std::uint32_t>(base);
  return value + static_cast<std::uint64_t>(
                     std::int64_t{static_cast<std::int32_t>(frame.operand(i, n + 2))});
}

// The host's address of one in shared memory; not checked.
inline std::byte* shared_pointer(const Frame& frame, const Instruction& i, std::size_t n) {
  return frame.shared + address_value(frame, i, n);
}

inline std::byte* shared_access(const Frame& frame, const Instruction& i, std::size_t n,
                                std::size_t bytes, Access kind) {
  std::byte* const address = shared_pointer(frame, i, n);
  simt::shared_access(address, bytes, kind, frame.where(i));
  return address;
}

// Not that of shared memory, but otherwise not checked.
inline std::byte* global_pointer(const Frame& frame, const Instruction& i, std::size_t n) {
  auto* const address = reinterpret_cast<std::byte*>(address_value(frame, i, n));
  if (address >= frame.shared && address < frame.shared + frame.shared_bytes) {
    fail("{}:{}: an access to global memory has an address of shared memory", frame.kernel.file,
         i.line);
  }
  return address;
}

inline std::byte* global_access(const Frame& frame, const Instruction& i, std::size_t n,
                                std::size_t bytes, Access kind) {
  std::byte* const address = global_pointer(frame, i, n);
  access(address, bytes, kind, frame.where(i));
  return address;
}

// Only read.
inline std::byte* parameter_access(const Frame& frame, const Instruction& i, std::size_t n,
                                   std::size_t bytes, Access) {
  const std::uint64_t offset = address_value(frame, i, n);
  if (offset + bytes > frame.kernel.parameter_bytes || offset % bytes) {
    fail("{}:{}: reads {} bytes at byte {} of {} bytes of parameters", frame.kernel.file, i.line,
         bytes, offset, frame.kernel.parameter_bytes);
  }
  return frame.parameters + offset;
}

}  // namespace orchard::simt::ptx
