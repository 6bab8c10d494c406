// Products of 32×32 tiles in plain fp32, for attention of any head_dim up to 256. A block is 128
// threads (y, x), 8 by 16, and thread (y, x) holds of every result rows 4y to 4y + 3: of scores
// [32, 32] columns x and x + 16, of rows of head_dim columns 4x + 64j to 4x + 64j + 3. So the 16
// threads of a row are half a warp, which reduces rows by shuffles and shares them by __syncwarp.
#pragma once

#include "kernels/attention/attention_gpu.h"
#include "kernels/gpu/gpu.h"
#include "kernels/gpu/values.h"
#include "kernels/gpu/vector.h"

namespace orchard::GPU_NAMESPACE {

inline constexpr int fma_tile = 32;
inline constexpr int fma_threads = 128;
// Of an SM, as shared memory has room: unasked, ptxas saves registers for more, and spills.
template <int capacity>
inline constexpr int fma_blocks = capacity <= 128 ? 2 : 1;
inline constexpr int fma_thread_rows = 4;

// Rows of head_dim <= capacity, zeros behind. Four words of padding: the rows of eight neighbours,
// 16 bytes each, fall into different banks.
template <int capacity>
struct FmaRows {
  float row[fma_tile][capacity + 4];
};

struct FmaScores {
  float row[fma_tile][fma_tile + 4];
};

template <int capacity>
using FmaSums = float[fma_thread_rows][capacity / 16];
using FmaScoreSums = float[fma_thread_rows][2];

__device__ inline int fma_row() {
  return static_cast<int>(threadIdx.x) / 16 * fma_thread_rows;
}
__device__ inline int fma_column() {
  return static_cast<int>(threadIdx.x) % 16;
}

// Rows [first, first + count) become the tile's first rows; the others are zero.
template <class T, int capacity>
__device__ void load_rows(FmaRows<capacity>& tile, HeadRows<const T> from, std::int64_t first,
                          int count) {
  // As many loads in flight as registers allow at a capacity of 256.
#pragma unroll 8
  for (int i = static_cast<int>(threadIdx.x); i < fma_tile * capacity; i += fma_threads) {
    const int r = i / capacity, c = i % capacity;
    const bool inside = r < count && c < from.head_dim;
    store_shared(&tile.row[r][c],
                 inside ? widen(load(from.data + (first + r) * from.stride + c)) : 0.0f);
  }
}

template <class T, int capacity>
__device__ void store_rows(HeadRows<T> to, std::int64_t first, int count,
                           const FmaSums<capacity>& sums, float factor) {
  const bool quads =
      to.head_dim % 4 == 0 && reinterpret_cast<std::uintptr_t>(to.data) % (4 * sizeof(T)) == 0;
#pragma unroll
  for (int i = 0; i < fma_thread_rows; ++i) {
    const int r = fma_row() + i;
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
__device__ void multiply_transposed(const FmaRows<capacity>& a, const FmaRows<capacity>& b,
                                    int depth, FmaScoreSums& sums) {
#pragma unroll
  for (auto& row : sums) row[0] = row[1] = 0.0f;
#pragma unroll 2
  for (int e = 0; e < depth; e += 4) {
    float4 right[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      right[j] = load_four(&b.row[fma_column() + 16 * j][e]);
    }
#pragma unroll
    for (int i = 0; i < fma_thread_rows; ++i) {
      const float4 left = load_four(&a.row[fma_row() + i][e]);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
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
__device__ void multiply_add(const FmaScores& scores, const FmaRows<capacity>& b, int depth,
                             FmaSums<capacity>& sums) {
#pragma unroll 4
  for (int k = 0; k < depth; ++k) {
    float left[fma_thread_rows];
#pragma unroll
    for (int i = 0; i < fma_thread_rows; ++i) left[i] = load_shared(&scores.row[fma_row() + i][k]);
#pragma unroll
    for (int j = 0; j < capacity / 64; ++j) {
      const float4 right = load_four(&b.row[k][4 * fma_column() + 64 * j]);
#pragma unroll
      for (int i = 0; i < fma_thread_rows; ++i) {
        sums[i][4 * j] = fmaf(left[i], right.x, sums[i][4 * j]);
        sums[i][4 * j + 1] = fmaf(left[i], right.y, sums[i][4 * j + 1]);
        sums[i][4 * j + 2] = fmaf(left[i], right.z, sums[i][4 * j + 2]);
        sums[i][4 * j + 3] = fmaf(left[i], right.w, sums[i][4 * j + 3]);
      }
    }
  }
}

// Shares scores with the threads of the same rows. What was shared before is no longer read.
__device__ inline void share(FmaScores& shared, const FmaScoreSums& scores) {
  __syncwarp();
#pragma unroll
  for (int i = 0; i < fma_thread_rows; ++i) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      store_shared(&shared.row[fma_row() + i][fma_column() + 16 * j], scores[i][j]);
    }
  }
  __syncwarp();
}

}  // namespace orchard::GPU_NAMESPACE
