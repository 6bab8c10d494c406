// Attention forward in plain fp32 arithmetic, on any GPU: the mode to compare with, and bf16 of
// shapes that the tensor-core kernel does not take.
//
// FLOPs: 4·head_dim per visible query-key pair, in whole tiles of 32×32 (of 16×16 from a head_dim of
// 129 on). Bound by multiply-adds, one of which costs an eighth of a 16-byte read of shared memory.
//
// A block takes 32 queries of one head and walks over the keys they see, 32 at a time. Scores are
// in units of log 2. Each row keeps the largest score so far and, relative to it, the sum of
// probabilities and of probabilities times v (Milakov and Gimelshein 2018; Dao et al. 2022).
#include "kernels/attention/attention_gpu.h"
#include "kernels/attention/fma_tiles.h"
#include "kernels/gpu/gpu.h"
#include "kernels/ptx/exp2.h"

namespace orchard::GPU_NAMESPACE {
namespace {

template <class T>
struct Forward {
  Problem problem;
  const T *q, *k, *v;
  T* out;
  float* log_sum_exp;
};

template <int capacity>
struct Storage {
  FmaRows<capacity> q, k, v;
  FmaScores<capacity> probabilities;
};

__device__ float half_warp_max(float value) {
#pragma unroll
  for (int distance = 8; distance > 0; distance /= 2) {
    value = fmaxf(value, __shfl_xor_sync(all_lanes, value, distance));
  }
  return value;
}

__device__ float half_warp_sum(float value) {
#pragma unroll
  for (int distance = 8; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(all_lanes, value, distance);
  }
  return value;
}

template <class T, int capacity>
__global__ void __launch_bounds__(fma_threads, fma_blocks) attention_forward_rows(Forward<T> op) {
  constexpr int side = fma_tile(capacity);
  constexpr int thread_rows = fma_thread_rows<capacity>;
  constexpr int thread_columns = fma_thread_columns<capacity>;
  const Problem& problem = op.problem;
  const int head = static_cast<int>(blockIdx.x) % problem.heads;
  // From the last tile to the first: under a causal mask the last have the most keys.
  const int slot = static_cast<int>(gridDim.x - 1 - blockIdx.x) / problem.heads;
  const DocumentTile tile = find_tile(problem.packing, Axis::queries, side, slot);
  const Document& document = tile.document;
  const int first = tile.first;
  const int rows = min(document.queries - first, side);
  if (rows <= 0) return;

  const int kv_head = head / (problem.heads / problem.kv_heads);
  const HeadRows<const T> q(op.q, head, problem.heads, problem.head_dim);
  const HeadRows<const T> k(op.k, kv_head, problem.kv_heads, problem.head_dim);
  const HeadRows<const T> v(op.v, kv_head, problem.kv_heads, problem.head_dim);

  auto& shared = shared_storage<Storage<capacity>>();
  load_rows(shared.q, q, document.query_begin + first, rows);
  const float scale = problem.scale * log2_e;
  const int depth = (problem.head_dim + 3) / 4 * 4;
  int visible[thread_rows];
  float row_max[thread_rows], row_sum[thread_rows] = {};  // the sum of this thread's columns
  FmaSums<capacity> sums = {};
#pragma unroll
  for (int i = 0; i < thread_rows; ++i) {
    visible[i] =
        static_cast<int>(document.visible_keys(problem.mask, first + fma_row<capacity>() + i));
    row_max[i] = -infinity;
  }

  const int seen = static_cast<int>(document.visible_keys(problem.mask, first + rows - 1));
  for (int key = 0; key < seen; key += side) {
    const int columns = min(seen - key, side);
    __syncthreads();
    load_rows(shared.k, k, document.key_begin + key, columns);
    load_rows(shared.v, v, document.key_begin + key, columns);
    __syncthreads();

    FmaScoreSums<capacity> scores;
    multiply_transposed(shared.q, shared.k, depth, scores);
#pragma unroll
    for (int i = 0; i < thread_rows; ++i) {
      float largest = row_max[i];
#pragma unroll
      for (int j = 0; j < thread_columns; ++j) {
        const bool sees = key + fma_column() + 16 * j < min(visible[i], seen);
        scores[i][j] = sees ? scores[i][j] * scale : -infinity;
        largest = fmaxf(largest, scores[i][j]);
      }
      largest = half_warp_max(largest);
      // A row that has seen no key yet: -inf - -inf would be NaN.
      const float subtract = largest == -infinity ? 0.0f : largest;
      const float shrink = fast_exp2(row_max[i] - subtract);
      row_max[i] = largest;
      row_sum[i] *= shrink;
#pragma unroll
      for (float& sum : sums[i]) sum *= shrink;
#pragma unroll
      for (int j = 0; j < thread_columns; ++j) {
        scores[i][j] = fast_exp2(scores[i][j] - subtract);
        row_sum[i] += scores[i][j];
      }
    }
    share(shared.probabilities, scores);
    multiply_add(shared.probabilities, shared.v, columns, sums);
  }

#pragma unroll
  for (int i = 0; i < thread_rows; ++i) {
    const float total = half_warp_sum(row_sum[i]);
    const float inverse = total == 0.0f ? 0.0f : 1.0f / total;
#pragma unroll
    for (float& sum : sums[i]) sum *= inverse;
    if (fma_column() == 0 && fma_row<capacity>() + i < rows) {
      const std::int64_t row = document.query_begin + first + fma_row<capacity>() + i;
      store(op.log_sum_exp + row * problem.heads + head,
            total == 0.0f ? -infinity : row_max[i] * ln_2 + logf(total));
    }
  }
  const HeadRows<T> out(op.out, head, problem.heads, problem.head_dim);
  store_rows<T, capacity>(out, document.query_begin + first, rows, sums, 1.0f);
}

template <class T, int capacity>
void launch_forward(Stream& stream, const AttentionForward& op) {
  const Forward<T> forward{.problem = problem_of("AttentionForward", op),
                           .q = op.q.data<T>(),
                           .k = op.k.data<T>(),
                           .v = op.v.data<T>(),
                           .out = op.out.data<T>(),
                           .log_sum_exp = op.log_sum_exp.data<float>()};
  const Extent3 grid =
      grid_of("AttentionForward", slots(forward.problem.packing, Axis::queries, fma_tile(capacity)),
              forward.problem.heads);
  if (grid.x == 0) return;
  launch(stream,
         {.kernel = "attention_forward_rows",
          .grid = grid,
          .block = {fma_threads},
          .shared_bytes = sizeof(Storage<capacity>)},
         attention_forward_rows<T, capacity>, forward);
}

template <class T>
void forward_of(Stream& stream, const AttentionForward& op) {
  const std::int64_t head_dim = op.q.dim(2);
  (head_dim <= 64    ? launch_forward<T, 64>
   : head_dim <= 128 ? launch_forward<T, 128>
                     : launch_forward<T, 256>)(stream, op);
}

}  // namespace

void attention_forward_fma(Stream& stream, const AttentionForward& op) {
  (op.q.dtype() == DType::f32 ? forward_of<float> : forward_of<bf16>)(stream, op);
}

}  // namespace orchard::GPU_NAMESPACE
