// The online softmax of attention on tensor cores (Milakov and Gimelshein 2018), on scores in mma's
// layout of sums: four neighbouring lanes share a row.
#pragma once

#include "kernels/attention/mma_tiles.h"
#include "kernels/ptx/exp2.h"

namespace orchard::GPU_NAMESPACE {

// The running softmax of the two rows of each 16 that a lane shares with three others.
template <int m>
struct RunningRows {
  float max[m][2];
  float sum[m][2];  // of this lane's columns

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < m; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        max[i][half] = -infinity;
        sum[i][half] = 0.0f;
      }
    }
  }
};

__device__ inline float quad_max(float value) {
  value = fmaxf(value, __shfl_xor_sync(all_lanes, value, 1));
  return fmaxf(value, __shfl_xor_sync(all_lanes, value, 2));
}

__device__ inline float quad_sum(float value) {
  value += __shfl_xor_sync(all_lanes, value, 1);
  return value + __shfl_xor_sync(all_lanes, value, 2);
}

// Scores of keys that their row does not see become -inf: of this lane's first row those from `seen`
// on, of the next rows one more each where the mask is causal, and all from `keys` on.
template <int m, int n>
__device__ __forceinline__ void mask_scores(MmaSums<m, n>& scores, Mask mask, int seen, int keys) {
#pragma unroll
  for (int i = 0; i < m; ++i) {
#pragma unroll
    for (int j = 0; j < n; ++j) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int key = 8 * j + lane() % 4 * 2 + c % 2, row = 16 * i + 8 * (c / 2);
        const bool sees = mask == Mask::full || key < seen + row;
        if (!sees || key >= keys) scores[i][j][c] = -infinity;
      }
    }
  }
}

// Scores, times `scale` in units of log 2, become probabilities relative to the new largest score;
// what was summed relative to the one before is to be multiplied by `shrink`.
template <int m, int n>
__device__ __forceinline__ void online_softmax(MmaSums<m, n>& scores, float scale,
                                               RunningRows<m>& rows, float (&shrink)[m][2]) {
#pragma unroll
  for (int i = 0; i < m; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float old_max = rows.max[i][half];
      float largest = old_max;
#pragma unroll
      for (int j = 0; j < n; ++j) {
        largest = fmaxf(largest, fmaxf(scores[i][j][2 * half], scores[i][j][2 * half + 1]));
      }
      largest = quad_max(largest);
      // A row that has seen no key yet: -inf - -inf would be NaN.
      const float subtract = largest == -infinity ? 0.0f : largest * scale;
      shrink[i][half] = fast_exp2(old_max * scale - subtract);
      float sum = rows.sum[i][half] * shrink[i][half];
#pragma unroll
      for (int j = 0; j < n; ++j) {
#pragma unroll
        for (int c = 2 * half; c < 2 * half + 2; ++c) {
          scores[i][j][c] = fast_exp2(fmaf(scores[i][j][c], scale, -subtract));
          sum += scores[i][j][c];
        }
      }
      rows.max[i][half] = largest;
      rows.sum[i][half] = sum;
    }
  }
}

template <int m, int n>
__device__ __forceinline__ void rescale(MmaSums<m, n>& sums, const float (&factor)[m][2]) {
#pragma unroll
  for (int i = 0; i < m; ++i) {
#pragma unroll
    for (int j = 0; j < n; ++j) {
#pragma unroll
      for (int c = 0; c < 4; ++c) sums[i][j][c] *= factor[i][c / 2];
    }
  }
}

// The end of a row, in each of its lanes. A row that has seen no key has the sums 0 and -inf.
struct RowTotal {
  float inverse;  // of the sum of probabilities
  float log_sum_exp;
};

template <int m>
__device__ __forceinline__ RowTotal total_of(const RunningRows<m>& rows, int i, int half,
                                             float scale) {
  const float total = quad_sum(rows.sum[i][half]);
  if (total == 0.0f) return {0.0f, -infinity};
  return {1.0f / total, rows.max[i][half] * scale * ln_2 + logf(total)};
}

}  // namespace orchard::GPU_NAMESPACE
