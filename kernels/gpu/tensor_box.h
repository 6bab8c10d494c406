// What the copy engine of sm_90 moves at once, the same for a GPU and the emulator.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/core/dtype.h"

namespace orchard {

// Which 16-byte columns of shared memory change places, as the number of the 128-byte line says: as many
// at a time as the value. What wgmma reads of one column then lies in different banks.
enum class Swizzle : std::uint8_t { none = 1, bytes_32 = 2, bytes_64 = 4, bytes_128 = 8 };

// A stack of row-major matrices of bf16 or f32, and the box of one of them that one copy moves. A row of
// the box has the swizzle's bytes, without one at most 256 elements; the rows lie one after the other in
// shared memory. `data` and rows are aligned to 16 bytes, rows of the box, too; box_rows is at
// most 256.
struct TensorBox {
  const void* data;
  std::int64_t cols, rows, matrices;
  int box_cols, box_rows;
  DType dtype = DType::bf16;
  Swizzle swizzle = Swizzle::bytes_128;

  constexpr std::size_t box_bytes() const {
    return size_of(dtype) * static_cast<std::size_t>(box_cols * box_rows);
  }
};

}  // namespace orchard
