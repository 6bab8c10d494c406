// Products of square tiles in plain fp32, for attention of any head_dim up to 256. A block is 128
// threads (y, x), 8 by 16, and thread (y, x) holds of every result an eighth of the rows, 4y to 4y + 3
// of 32: of scores columns x + 16j, of rows of head_dim columns 4x + 64j to 4x + 64j + 3. So the 16
// threads of a row are half a warp, which reduces rows by shuffles and shares them by __syncwarp.
#pragma once

#include "kernels/attention/attention_gpu.h"
#include "kernels/gpu/gpu.h"
#include "kernels/gpu/values.h"
#include "kernels/gpu/vector.h"

namespace orchard::GPU_NAMESPACE {

// Rows of a tile, on either axis.
constexpr int fma_tile(int capacity) {
  // Backward's four tiles of 32 rows would be 130 KB, more than every GPU gives a block (99 KB). Of 16
  // they are 65 KB; scores then read shared memory twice as often a product.
  if (capacity > 128) return 16;
  // 75 KB in backward, twice on an SM of sm_80. With 8 sums of scores a thread, reads keep up.
  return 32;
}
inline constexpr int fma_threads = 128;
// Of an SM of sm_80, as shared memory has room: unasked, ptxas saves registers for more, and spills.
inline constexpr int fma_blocks = 2;
template <int capacity>
inline constexpr int fma_thread_rows = fma_tile(capacity) / 8;
template <int capacity>
inline constexpr int fma_thread_columns = fma_tile(capacity) / 16;  // of scores

// Rows of head_dim <= capacity, zeros behind. Four words of padding: the rows of eight neighbours,
// 16 bytes each, fall into different banks.
template <int capacity>
struct FmaRows {
  float row[fma_tile(capacity)][capacity + 4];
};

// A warp's two rows at a time are fma_thread_rows apart, and with this padding in different banks.
template <int capacity>
struct FmaScores {
  float row[fma_tile(capacity)][fma_tile(capacity) + 16 / fma_thread_rows<capacity>];
};

// Functions that take sums are inlined by force, which keeps the sums in registers for the host's
// compiler, too.
template <int capacity>
using FmaSums = float[fma_thread_rows<capacity>][capacity / 16];
template <int capacity>
using FmaScoreSums = float[fma_thread_rows<capacity>][fma_thread_columns<capacity>];

template <int capacity>
__device__ int fma_row() {
  return static_cast<int>(threadIdx.x) / 16 * fma_thread_rows<capacity>;
}
__device__ inline int fma_column() {
  return static_cast<int>(threadIdx.x) % 16;
}

// Rows [first, first + count) become the tile's first rows; the others are zero.
template <class T, int capacity>
__device__ void load_rows(FmaRows<capacity>& tile, HeadRows<const T> from, std::int64_t first,
                          int count) {
#pragma unroll 8  // loads in flight; all 32 would ask for more registers than there are
  for (int i = static_cast<int>(threadIdx.x); i < fma_tile(capacity) * capacity; i += fma_threads) {
    const int r = i / capacity, c = i % capacity;
    const bool inside = r < count && c < from.head_dim;
    store_shared(&tile.row[r][c],
                 inside ? widen(load(from.data + (first + r) * from.stride + c)) : 0.0f);
  }
}

template <class T, int capacity>
__device__ __forceinline__ void store_rows(HeadRows<T> to, std::int64_t first, int count,
                                           const FmaSums<capacity>& sums, float factor) {
  const bool quads =
      to.head_dim % 4 == 0 && reinterpret_cast<std::uintptr_t>(to.data) % (4 * sizeof(T)) == 0;
#pragma unroll
  for (int i = 0; i < fma_thread_rows<capacity>; ++i) {
    const int r = fma_row<capacity>() + i;
    if (r >= count) continue;
#pragma unroll
    for (int j = 0; j < capacity / 64; ++j) {
      const int c = 4 * fma_column() + 64 * j;
      T* const at = to.data + (first + r) * to.stride + c;
      Values<4> values;
#pragma unroll
      for (int e = 0; e < 4; ++e) values[e] = sums[i][4 * j + e] * factor;
      if (quads) {
        if (c < to.head_dim) store_values(at, values);
        continue;
      }
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (c + e < to.head_dim) store(at + e, narrow<T>(values[e]));
      }
    }
  }
}

__device__ inline float4 load_four(const float* shared) {
  return load_shared(reinterpret_cast<const float4*>(shared));
}

// sums = a·bᵀ over the first `depth` columns, a multiple of 4.
template <int capacity>
__device__ __forceinline__ void multiply_transposed(const FmaRows<capacity>& a,
                                                    const FmaRows<capacity>& b, int depth,
                                                    FmaScoreSums<capacity>& sums) {
  constexpr int rows = fma_thread_rows<capacity>, columns = fma_thread_columns<capacity>;
  const int first_row = fma_row<capacity>(), column = fma_column();
#pragma unroll
  for (auto& row : sums) {
#pragma unroll
    for (float& sum : row) sum = 0.0f;
  }
#pragma unroll 2
  for (int e = 0; e < depth; e += 4) {
    float4 right[columns];
#pragma unroll
    for (int j = 0; j < columns; ++j) {
      right[j] = load_four(&b.row[column + 16 * j][e]);
    }
#pragma unroll
    for (int i = 0; i < rows; ++i) {
      const float4 left = load_four(&a.row[first_row + i][e]);
#pragma unroll
      for (int j = 0; j < columns; ++j) {
        sums[i][j] = fmaf(left.x, right[j].x, sums[i][j]);
        sums[i][j] = fmaf(left.y, right[j].y, sums[i][j]);
        sums[i][j] = fmaf(left.z, right[j].z, sums[i][j]);
        sums[i][j] = fmaf(left.w, right[j].w, sums[i][j]);
      }
    }
  }
}

// sums += scores·b over the first `depth` rows of b.
template <int capacity>
__device__ __forceinline__ void multiply_add(const FmaScores<capacity>& scores,
                                             const FmaRows<capacity>& b, int depth,
                                             FmaSums<capacity>& sums) {
  constexpr int rows = fma_thread_rows<capacity>;
  const int first_row = fma_row<capacity>(), column = 4 * fma_column();
#pragma unroll 4
  for (int k = 0; k < depth; ++k) {
    float left[rows];
#pragma unroll
    for (int i = 0; i < rows; ++i) left[i] = load_shared(&scores.row[first_row + i][k]);
#pragma unroll
    for (int j = 0; j < capacity / 64; ++j) {
      const float4 right = load_four(&b.row[k][column + 64 * j]);
#pragma unroll
      for (int i = 0; i < rows; ++i) {
        sums[i][4 * j] = fmaf(left[i], right.x, sums[i][4 * j]);
        sums[i][4 * j + 1] = fmaf(left[i], right.y, sums[i][4 * j + 1]);
        sums[i][4 * j + 2] = fmaf(left[i], right.z, sums[i][4 * j + 2]);
        sums[i][4 * j + 3] = fmaf(left[i], right.w, sums[i][4 * j + 3]);
      }
    }
  }
}

// Shares scores with the threads of the same rows. What was shared before is no longer read.
template <int capacity>
__device__ __forceinline__ void share(FmaScores<capacity>& shared,
                                      const FmaScoreSums<capacity>& scores) {
  __syncwarp();
#pragma unroll
  for (int i = 0; i < fma_thread_rows<capacity>; ++i) {
#pragma unroll
    for (int j = 0; j < fma_thread_columns<capacity>; ++j) {
      store_shared(&shared.row[fma_row<capacity>() + i][fma_column() + 16 * j], scores[i][j]);
    }
  }
  __syncwarp();
}

}  // namespace orchard::GPU_NAMESPACE
