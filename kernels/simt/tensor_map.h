// The emulator's tensor map: what cuTensorMapEncodeTiled would make for a stack of row-major bf16
// matrices whose boxes are swizzled in 128-byte rows.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/gpu/tensor_box.h"

namespace orchard::simt {

// As large as CUDA's, so that a kernel's parameters lie where they do on a GPU.
struct alignas(64) TensorMap {
  TensorBox box;
  std::byte unused[128 - sizeof(TensorBox)] = {};
};

// Throws Error where the driver would refuse.
TensorMap make_tensor_map(const TensorBox& box);

// One copy of a box to shared memory. Elements outside the tensor become zero.
struct TensorLoad {
  TensorBox box;
  void* shared;
  int col, row, matrix;
  std::uint64_t* barrier;

  std::size_t bytes() const { return std::size_t{2} * box.box_cols * box.box_rows; }
};

// Shared memory's 128-byte swizzle: which 16 bytes of the pattern those at `offset` become.
constexpr std::size_t swizzle_128(std::size_t offset) {
  return offset ^ (offset >> 7 & 7) << 4;
}

// Copies into a block's shared memory that begins at `shared_begin`.
void perform(const TensorLoad& load, std::byte* shared_begin);

}  // namespace orchard::simt
