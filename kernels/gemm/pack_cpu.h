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
  // Row i is the matrix's row source[i], zeros where that is -1; null: row i.
  const std::int32_t* source = nullptr;

  // Null: a row of zeros.
  const std::byte* at(std::int64_t i, DType dtype) const {
    const std::int64_t row = source ? source[i] : i;
    return row < 0 ? nullptr : data + static_cast<std::size_t>(row * stride) * size_of(dtype);
  }
};

// Columns [64·block, 64·block + 64) of a matrix [k, n] (or [n, k] when transposed) into the packed
// layout of onednn_tiles.h, with zeros for elements in [k, padded_k). `packed` is the address of
// the block. A transposed matrix has its rows in order.
void pack_block(DType dtype, Transpose transpose, Rows matrix, std::int64_t k,
                std::int64_t padded_k, std::int64_t n, std::int64_t block, std::byte* packed);

// Columns [first, first + count) of a matrix [k, m] into rows [count, padded_k]; padded_k is a
// multiple of 2, and elements past k are zero.
void transpose_columns(DType dtype, const std::byte* matrix, std::int64_t k, std::int64_t m,
                       std::int64_t first, std::int64_t count, std::int64_t padded_k,
                       std::byte* rows);

// Rows [first, first + count), of `cols` elements each, one after the other: as they are, or as f32.
void copy_rows(DType dtype, const Rows& rows, std::int64_t first, std::int64_t count,
               std::int64_t cols, std::byte* to);
void copy_rows_to_f32(DType dtype, const Rows& rows, std::int64_t first, std::int64_t count,
                      std::int64_t cols, float* to);

void widen(const bf16* source, float* destination, std::int64_t count);
void narrow(const float* source, bf16* destination, std::int64_t count);

}  // namespace orchard::cpu
