// What the copy engine of sm_90 moves at once, the same for a GPU and the emulator.
#pragma once

#include <cstdint>

namespace orchard {

// A stack of row-major bf16 matrices, and the box of one of them that one copy moves. A row of the
// box is the swizzle's 128 bytes or less, the rows lie one after the other in shared memory.
// `data` is aligned to 16 bytes, cols is a multiple of 8, box_rows at most 256, box_cols at most 64.
struct TensorBox {
  const void* data;
  std::int64_t cols, rows, matrices;
  int box_cols, box_rows;
};

}  // namespace orchard
