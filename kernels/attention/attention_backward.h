// What the tensor-core kernels of attention's backward share. A block takes rows of one axis and walks
// over the rows of the other axis, which it calls columns: attention_backward_sm80.cu says why.
#pragma once

#include "kernels/attention/attention_gpu.h"
#include "kernels/attention/mma_tiles.h"
#include "kernels/attention/row_dots.h"
#include "kernels/gpu/gpu.h"

namespace orchard::GPU_NAMESPACE {

struct Backward {
  Problem problem;
  const bf16 *q, *k, *v, *d_out;
  const float *log_sum_exp, *dots;  // [query_tokens, heads]
  bf16 *d_q, *d_k, *d_v;
  float log2_scale;
};

// Queues the computation of `dots`.
inline Backward backward_of(Stream& stream, const AttentionBackward& op) {
  return {.problem = problem_of("AttentionBackward", op),
          .q = op.q.data<bf16>(),
          .k = op.k.data<bf16>(),
          .v = op.v.data<bf16>(),
          .d_out = op.d_out.data<bf16>(),
          .log_sum_exp = op.log_sum_exp.data<float>(),
          .dots = row_dots(stream, op),
          .d_q = op.d_q.data<bf16>(),
          .d_k = op.d_k.data<bf16>(),
          .d_v = op.d_v.data<bf16>(),
          .log2_scale = op.scale * log2_e};
}

// What a block computes: of its rows, which are queries or keys.
enum class Gradients : std::uint8_t { d_q, d_k_and_d_v };

// The columns, rows of their tensor, that rows [begin, end) of the document see, as a warp of them
// needs to know it. Of no rows: none.
struct Sight {
  int any_begin, all_begin;  // the first column that any row sees, and that all see
  int all_end, any_end;
};

template <Gradients wanted>
__device__ Sight sight_of(const Document& document, Mask mask, int begin, int end) {
  const bool rows = begin < end;
  if constexpr (wanted == Gradients::d_q) {
    const auto visible = [&](int query) {
      const std::int64_t keys = rows ? document.visible_keys(mask, query) : 0;
      return document.key_begin + static_cast<int>(keys);
    };
    return {document.key_begin, document.key_begin, visible(begin), visible(end - 1)};
  } else {
    const auto seeing = [&](int key) {
      const std::int64_t query = rows ? document.first_query(mask, key) : document.queries;
      return document.query_begin + static_cast<int>(query);
    };
    const int queries_end = document.query_begin + document.queries;
    return {seeing(begin), seeing(end - 1), queries_end, queries_end};
  }
}

// Which columns see the rows of a tile. Of row 0 those from `edge` on (columns are queries), or those
// before (columns are keys), of the next rows one more each where the mask is causal, and none from
// `end` on.
template <Gradients wanted>
struct Edge {
  Mask mask;
  int edge, end;

  __device__ bool sees(int row, int column) const {
    const bool sees = mask == Mask::full ||
                      (wanted == Gradients::d_q ? column < edge + row : column >= edge + row);
    return sees && column < end;
  }
};

// log_sum_exp, in units of log 2, and D of this lane's two rows of each 16, where rows are queries.
template <int m>
struct RowTerms {
  float log2_sum[m][2], dot[m][2];
};

template <int m>
__device__ RowTerms<m> load_row_terms(const Backward& op, int head, int first_query, int rows) {
  RowTerms<m> terms;
#pragma unroll
  for (int i = 0; i < m; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = 16 * i + 8 * half + lane() / 4;
      const std::int64_t at = std::int64_t{first_query + row} * op.problem.heads + head;
      terms.log2_sum[i][half] = row < rows ? load(op.log_sum_exp + at) * log2_e : 0.0f;
      terms.dot[i][half] = row < rows ? load(op.dots + at) : 0.0f;
    }
  }
  return terms;
}

}  // namespace orchard::GPU_NAMESPACE
