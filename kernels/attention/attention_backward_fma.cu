// Attention backward in plain fp32 arithmetic, on any GPU: the mode to compare with, and bf16 of
// shapes that the tensor-core kernels do not take. With P = exp(scale·q·kᵀ - log_sum_exp),
// recomputed tile by tile, and D = rowsum(d_out ∘ out):
//
//   d_v = Pᵀ·d_out    dS = P ∘ (d_out·vᵀ - D)    d_q = scale·dS·k    d_k = scale·dSᵀ·q
//
// Two kernels of one form: a block takes a tile of rows of one axis, queries for d_q and keys for d_k and
// d_v, and walks over the rows of the other. Each sums its gradients by itself and in one order, so
// nothing needs atomics, at the price of making the scores twice: 14·head_dim FLOPs per visible
// query-key pair instead of 10, in whole tiles of 32×32 (of 16×16 from a head_dim of 129 on). Bound by
// multiply-adds.
#include "kernels/attention/attention_gpu.h"
#include "kernels/attention/fma_tiles.h"
#include "kernels/attention/row_dots.h"
#include "kernels/gpu/gpu.h"
#include "kernels/gpu/gpu_properties.h"
#include "kernels/ptx/exp2.h"

namespace orchard::GPU_NAMESPACE {
namespace {

template <class T>
struct Backward {
  Problem problem;
  const T *q, *k, *v, *d_out;
  const float *log_sum_exp, *dots;  // [query_tokens, heads]
  T *d_q, *d_k, *d_v;
};

// Rows are those of the block, columns those that it walks over. `first` of both are multiplied for
// the scores, `second` for the gradient of the probabilities.
template <int capacity>
struct Storage {
  FmaRows<capacity> first_rows, second_rows, first_columns, second_columns;
  FmaScores<capacity> probabilities, d_scores;
};
static_assert(sizeof(Storage<128>) <= least_shared_bytes &&
              sizeof(Storage<256>) <= least_shared_bytes);

// What a query brings along, so that P = exp2(scale·score - log2_sum).
struct QueryTerms {
  float log2_sum, dot;
};

template <class T>
__device__ QueryTerms terms_of(const Backward<T>& op, std::int64_t query, int head) {
  const std::int64_t i = query * op.problem.heads + head;
  return {load(op.log_sum_exp + i) * log2_e, load(op.dots + i)};
}

// A pair's probability and d_score, both exactly 0 where the query does not see the key: its
// log_sum_exp may be -inf.
__device__ __forceinline__ void softmax_backward(bool sees, float scale, const QueryTerms& terms,
                                                 float& score, float& d_probability) {
  score = sees ? fast_exp2(score * scale - terms.log2_sum) : 0.0f;
  d_probability = sees ? score * (d_probability - terms.dot) : 0.0f;
}

template <class T, int capacity>
__global__ void __launch_bounds__(fma_threads, fma_blocks) attention_d_q_rows(Backward<T> op) {
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
  const HeadRows<const T> d_out(op.d_out, head, problem.heads, problem.head_dim);
  const HeadRows<const T> k(op.k, kv_head, problem.kv_heads, problem.head_dim);
  const HeadRows<const T> v(op.v, kv_head, problem.kv_heads, problem.head_dim);

  auto& shared = shared_storage<Storage<capacity>>();
  const std::int64_t first_query = document.query_begin + first;
  load_rows(shared.first_rows, q, first_query, rows);
  load_rows(shared.second_rows, d_out, first_query, rows);
  QueryTerms terms[thread_rows] = {};
  int visible[thread_rows] = {};
#pragma unroll
  for (int i = 0; i < thread_rows; ++i) {
    if (fma_row<capacity>() + i >= rows) continue;
    terms[i] = terms_of(op, first_query + fma_row<capacity>() + i, head);
    visible[i] =
        static_cast<int>(document.visible_keys(problem.mask, first + fma_row<capacity>() + i));
  }

  const float scale = problem.scale * log2_e;
  const int depth = (problem.head_dim + 3) / 4 * 4;
  const int seen = static_cast<int>(document.visible_keys(problem.mask, first + rows - 1));
  FmaSums<capacity> d_q = {};
  for (int key = 0; key < seen; key += side) {
    const int columns = min(seen - key, side);
    __syncthreads();
    load_rows(shared.first_columns, k, document.key_begin + key, columns);
    load_rows(shared.second_columns, v, document.key_begin + key, columns);
    __syncthreads();
    FmaScoreSums<capacity> scores, d_scores;
    multiply_transposed(shared.first_rows, shared.first_columns, depth, scores);
    multiply_transposed(shared.second_rows, shared.second_columns, depth, d_scores);
#pragma unroll
    for (int i = 0; i < thread_rows; ++i) {
#pragma unroll
      for (int j = 0; j < thread_columns; ++j) {
        const bool sees = key + fma_column() + 16 * j < visible[i];
        softmax_backward(sees, scale, terms[i], scores[i][j], d_scores[i][j]);
      }
    }
    share(shared.d_scores, d_scores);
    multiply_add(shared.d_scores, shared.first_columns, columns, d_q);
  }
  const HeadRows<T> out(op.d_q, head, problem.heads, problem.head_dim);
  store_rows<T, capacity>(out, first_query, rows, d_q, problem.scale);
}

template <class T, int capacity>
__global__ void __launch_bounds__(fma_threads, fma_blocks) attention_d_k_d_v_rows(Backward<T> op) {
  constexpr int side = fma_tile(capacity);
  constexpr int thread_rows = fma_thread_rows<capacity>;
  constexpr int thread_columns = fma_thread_columns<capacity>;
  const Problem& problem = op.problem;
  const int kv_head = static_cast<int>(blockIdx.x) % problem.kv_heads;
  // From the first tile to the last: under a causal mask the first are seen by the most queries.
  const int slot = static_cast<int>(blockIdx.x) / problem.kv_heads;
  const DocumentTile tile = find_tile(problem.packing, Axis::keys, side, slot);
  const Document& document = tile.document;
  const int first = tile.first;
  const int rows = min(document.keys - first, side);
  if (rows <= 0) return;

  const HeadRows<const T> k(op.k, kv_head, problem.kv_heads, problem.head_dim);
  const HeadRows<const T> v(op.v, kv_head, problem.kv_heads, problem.head_dim);
  auto& shared = shared_storage<Storage<capacity>>();
  const std::int64_t first_key = document.key_begin + first;
  load_rows(shared.first_rows, k, first_key, rows);
  load_rows(shared.second_rows, v, first_key, rows);

  const float scale = problem.scale * log2_e;
  const int depth = (problem.head_dim + 3) / 4 * 4;
  const int seeing = static_cast<int>(document.first_query(problem.mask, first));
  const int group = problem.heads / problem.kv_heads;
  FmaSums<capacity> d_k = {}, d_v = {};
  for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    const HeadRows<const T> q(op.q, head, problem.heads, problem.head_dim);
    const HeadRows<const T> d_out(op.d_out, head, problem.heads, problem.head_dim);
    for (int query = seeing; query < document.queries; query += side) {
      const int columns = min(document.queries - query, side);
      const std::int64_t first_query = document.query_begin + query;
      __syncthreads();
      load_rows(shared.first_columns, q, first_query, columns);
      load_rows(shared.second_columns, d_out, first_query, columns);
      __syncthreads();
      FmaScoreSums<capacity> scores, d_scores;
      multiply_transposed(shared.first_rows, shared.first_columns, depth, scores);
      multiply_transposed(shared.second_rows, shared.second_columns, depth, d_scores);
#pragma unroll
      for (int j = 0; j < thread_columns; ++j) {
        const int column = fma_column() + 16 * j;
        QueryTerms terms = {};
        int visible = 0;
        if (column < columns) {
          terms = terms_of(op, first_query + column, head);
          visible = static_cast<int>(document.visible_keys(problem.mask, query + column));
        }
#pragma unroll
        for (int i = 0; i < thread_rows; ++i) {
          const bool sees = first + fma_row<capacity>() + i < visible;
          softmax_backward(sees, scale, terms, scores[i][j], d_scores[i][j]);
        }
      }
      share(shared.probabilities, scores);
      share(shared.d_scores, d_scores);
      multiply_add(shared.probabilities, shared.second_columns, columns, d_v);
      multiply_add(shared.d_scores, shared.first_columns, columns, d_k);
    }
  }
  const HeadRows<T> d_k_rows(op.d_k, kv_head, problem.kv_heads, problem.head_dim);
  const HeadRows<T> d_v_rows(op.d_v, kv_head, problem.kv_heads, problem.head_dim);
  store_rows<T, capacity>(d_k_rows, first_key, rows, d_k, problem.scale);
  store_rows<T, capacity>(d_v_rows, first_key, rows, d_v, 1.0f);
}

template <class T, int capacity>
void launch_backward(Stream& stream, const AttentionBackward& op) {
  const Backward<T> backward{.problem = problem_of("AttentionBackward", op),
                             .q = op.q.data<T>(),
                             .k = op.k.data<T>(),
                             .v = op.v.data<T>(),
                             .d_out = op.d_out.data<T>(),
                             .log_sum_exp = op.log_sum_exp.data<float>(),
                             .dots = row_dots(stream, op),
                             .d_q = op.d_q.data<T>(),
                             .d_k = op.d_k.data<T>(),
                             .d_v = op.d_v.data<T>()};
  const auto launch_along = [&](const char* name, Axis axis, int heads,
                                void (*kernel)(Backward<T>)) {
    const Extent3 grid = grid_of("AttentionBackward",
                                 slots(backward.problem.packing, axis, fma_tile(capacity)), heads);
    if (grid.x == 0) return;
    launch(stream,
           {.kernel = name,
            .grid = grid,
            .block = {fma_threads},
            .shared_bytes = sizeof(Storage<capacity>)},
           kernel, backward);
  };
  launch_along("attention_d_q_rows", Axis::queries, backward.problem.heads,
               attention_d_q_rows<T, capacity>);
  launch_along("attention_d_k_d_v_rows", Axis::keys, backward.problem.kv_heads,
               attention_d_k_d_v_rows<T, capacity>);
}

template <class T>
void backward_of(Stream& stream, const AttentionBackward& op) {
  const std::int64_t head_dim = op.q.dim(2);
  (head_dim <= 64    ? launch_backward<T, 64>
   : head_dim <= 128 ? launch_backward<T, 128>
                     : launch_backward<T, 256>)(stream, op);
}

}  // namespace

void attention_backward_fma(Stream& stream, const AttentionBackward& op) {
  (op.q.dtype() == DType::f32 ? backward_of<float> : backward_of<bf16>)(stream, op);
}

}  // namespace orchard::GPU_NAMESPACE
