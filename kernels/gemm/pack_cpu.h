// Rearranging and converting matrices for the GEMM backends. Single-threaded; callers share ranges
// out. Bound by memory: every element is read once and written once.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/core/dtype.h"
#include "kernels/gemm/gemm.h"

namespace orchard::cpu {

// Rows of a matrix, `stride` elements apart.
struct Rows {
  const std::byte* data = nullptr;
  std::int64_t stride = 0;
};

// Columns [64·block, 64·block + 64) of a matrix [k, n] (or [n, k] when transposed) into the packed
// layout of onednn_tiles.h, with zeros for elements in [k, padded_k). `packed` is the address of
// the block.
void pack_block(DType dtype, Transpose transpose, Rows matrix, std::int64_t k,
                std::int64_t padded_k, std::int64_t n, std::int64_t block, std::byte* packed);

// Columns [first, first + count) of a matrix [k, m] into rows [count, padded_k]; padded_k is a
// multiple of 2, and elements past k are zero.
void transpose_columns(DType dtype, const std::byte* matrix, std::int64_t k, std::int64_t m,
                       std::int64_t first, std::int64_t count, std::int64_t padded_k,
                       std::byte* rows);

void widen(const bf16* source, float* destination, std::int64_t count);
void narrow(const float* source, bf16* destination, std::int64_t count);

}  // namespace orchard::cpu
