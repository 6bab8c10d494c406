// Tiles of rows of one head for attention on sm_90a: the copy engine brings them, wgmma reads them.
//
// A tile lies in boxes of 64 columns, 128 bytes a row, which the copy engine swizzles. The same tile
// serves as an operand whose rows are m or n (q, k of q·kᵀ) and as one whose rows are k (v of P·v).
#pragma once

#include "kernels/attention/attention_gpu.h"
#include "kernels/attention/mma_tiles.h"
#include "kernels/gpu/gpu.h"
#include "kernels/ptx/convert.h"
#include "kernels/ptx/mbarrier.h"
#include "kernels/ptx/tma.h"
#include "kernels/ptx/wgmma.h"

namespace orchard::GPU_NAMESPACE {

inline constexpr int warpgroup = 128;
inline constexpr int group_rows = 64;  // of a warpgroup: wgmma's m
inline constexpr int box_cols = 64;    // 128 bytes, the width of the swizzle

template <int head_dim, int rows>
struct alignas(1024) WgmmaRows {
  static constexpr int boxes = head_dim / box_cols;
  bf16 element[boxes][rows * box_cols];
};

// A head's columns of rows [row, row + rows) of a tensor [tokens, heads, head_dim]. Rows beyond the
// tensor become zeros.
template <int head_dim, int rows>
__device__ void load_rows(WgmmaRows<head_dim, rows>& to, const TensorMap& map, int head, int row,
                          std::uint64_t* full) {
  mbarrier_arrive_expect(full, sizeof to);
#pragma unroll
  for (int i = 0; i < to.boxes; ++i) {
    tma_load(to.element[i], map, head * head_dim + i * box_cols, row, 0, full);
  }
}

// The operand's 16 columns from 16·step on, from row `row` on: rows are m or n, columns k.
template <int head_dim, int rows>
__device__ std::uint64_t columns_of(const WgmmaRows<head_dim, rows>& tile, int row, int step) {
  const unsigned address =
      shared_address(tile.element[step / 4]) + static_cast<unsigned>(row) * box_cols * sizeof(bf16);
  return wgmma_descriptor(address + static_cast<unsigned>(step % 4) * 32, 0);
}

// The operand's 16 rows from 16·step on: rows are k, columns n.
template <int head_dim, int rows>
__device__ std::uint64_t rows_of(const WgmmaRows<head_dim, rows>& tile, int step) {
  return wgmma_descriptor(shared_address(tile.element[0]) + static_cast<unsigned>(step) * 2048,
                          sizeof tile.element[0]);
}

// The copy engine knows tensors, not documents: behind the document's last row lie other rows, which
// may be infinite, and which a factor of 0 would not silence. Rows from `begin` on become zeros, by
// `threads` threads, of which this one is number `thread`; what follows is fence_proxy_async and a
// barrier of all of them.
template <int head_dim, int rows>
__device__ void zero_rows(WgmmaRows<head_dim, rows>& tile, int begin, int thread, int threads) {
  constexpr int units = box_cols * sizeof(bf16) / sizeof(uint4);  // of a row; swizzled in it
  for (int i = begin * units + thread; i < rows * units; i += threads) {
#pragma unroll
    for (auto& half : tile.element) store_shared(reinterpret_cast<uint4*>(half) + i, {0, 0, 0, 0});
  }
}

// Sums of wgmma become left operands where they lie: `step` of 16 columns.
template <std::size_t registers>
__device__ __forceinline__ void round_sums(const float (&sums)[registers], int step,
                                           unsigned (&operand)[4]) {
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    operand[r] = pack_bf16x2(sums[8 * step + 2 * r], sums[8 * step + 2 * r + 1]);
  }
}

// Stores a warp's sums, times `factor` and rounded to bf16, as rows [first, first + count), of which a
// warp has up to 16. The lanes of a quad have two columns of every eight each; they exchange them, so
// that each stores eight of its own.
template <int head_dim>
__device__ void store_sums(const float (&sums)[head_dim / 2], float factor,
                           const HeadRows<bf16>& to, std::int64_t first, int count) {
  const bool odd = lane() % 2 != 0, high = lane() % 4 >= 2;
  const auto exchange = [](unsigned& low_word, unsigned& high_word, bool keeps_high, int distance) {
    const unsigned other = __shfl_xor_sync(all_lanes, keeps_high ? low_word : high_word, distance);
    (keeps_high ? low_word : high_word) = other;
  };
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = lane() / 4 + 8 * half;
    bf16* const begin = to.data + (first + row) * to.stride;
#pragma unroll
    for (int j = 0; j < head_dim / 8; j += 4) {
      unsigned word[4];
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const int at = 4 * (j + w) + 2 * half;
        word[w] = pack_bf16x2(sums[at] * factor, sums[at + 1] * factor);
      }
      exchange(word[0], word[1], odd, 1);
      exchange(word[2], word[3], odd, 1);
      exchange(word[0], word[2], high, 2);
      exchange(word[1], word[3], high, 2);
      if (row < count) {
        store(reinterpret_cast<uint4*>(begin + 8 * (j + lane() % 4)),
              uint4{word[0], word[1], word[2], word[3]});
      }
    }
  }
}

// Where the i-th tile lies in a ring. Parities alternate from lap to lap. Counts may run over.
template <unsigned stages>
struct Turn {
  static_assert((stages & (stages - 1)) == 0, "a power of two divides 2^32");
  int stage;
  unsigned parity;
  __device__ explicit Turn(unsigned i)
      : stage(static_cast<int>(i % stages)), parity(i / stages % 2) {}
};

// [tokens, heads, head_dim] as a matrix of tokens, of which the copy engine brings `rows` at a time.
inline TensorMap tensor_map(const ConstTensor& x, int rows) {
  return make_tensor_map({.data = x.raw(),
                          .cols = x.dim(1) * x.dim(2),
                          .rows = x.dim(0),
                          .matrices = 1,
                          .box_cols = box_cols,
                          .box_rows = rows});
}

}  // namespace orchard::GPU_NAMESPACE
