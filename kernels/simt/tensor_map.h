// The emulator's tensor map: what cuTensorMapEncodeTiled would make for a stack of row-major matrices
// of bf16 or f32.
#pragma once

#include <algorithm>
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

// Where a box begins in its tensor: the element [matrix, row, col].
struct BoxStart {
  int col, row, matrix;
};

// One copy of a box to shared memory. Elements outside the tensor become zero.
struct TensorLoad {
  TensorBox box;
  void* shared;
  int col, row, matrix;
  std::uint64_t* barrier;
  // Bit r: into the block of rank r in the cluster, at the same place in each, and counted by the
  // same mbarrier of each. 0: into the block whose memory `shared` is.
  unsigned ranks = 0;

  std::size_t bytes() const { return box.box_bytes(); }
};

// What a copy into global memory does to what is there.
enum class Combine : std::uint8_t { replace, add };

// One copy of a box from shared memory. Elements outside the tensor are left out.
struct TensorStore {
  TensorBox box;
  const void* shared;
  int col, row, matrix;
  Combine combine = Combine::replace;

  std::size_t bytes() const { return box.box_bytes(); }
};

// Where shared memory's byte `offset` lies after swizzling (PTX ISA, "Tensor Swizzling Modes").
constexpr std::size_t swizzled(std::size_t offset, Swizzle swizzle) {
  const std::size_t last_column = static_cast<std::size_t>(swizzle) - 1;
  return offset ^ (offset >> 7 & last_column) << 4;
}

// The elements of a box in 16 bytes, which the swizzle moves together. Those inside the tensor are
// `count` from `skip` on, the first of them its element `number`.
struct BoxChunk {
  std::size_t place;  // byte of the box, before swizzling
  int skip, count;
  std::int64_t number;
};

template <class Action>
void for_each_chunk(const TensorBox& box, BoxStart start, const Action& action) {
  const int width = 16 / static_cast<int>(size_of(box.dtype));
  for (int r = 0; r < box.box_rows; ++r) {
    const std::int64_t row = start.row + r;
    const bool has_row =
        row >= 0 && row < box.rows && start.matrix >= 0 && start.matrix < box.matrices;
    for (int c = 0; c < box.box_cols; c += width) {
      const std::int64_t col = start.col + c;
      const std::int64_t begin = std::clamp<std::int64_t>(col, 0, box.cols);
      const std::int64_t end = std::clamp<std::int64_t>(col + width, 0, box.cols);
      action(BoxChunk{.place = size_of(box.dtype) * static_cast<std::size_t>(r * box.box_cols + c),
                      .skip = static_cast<int>(begin - col),
                      .count = has_row ? static_cast<int>(end - begin) : 0,
                      .number = (start.matrix * box.rows + row) * box.cols + begin});
    }
  }
}

}  // namespace orchard::simt
