// Attention backward in bf16 on tensor cores, from sm_80 on. With P = exp(scale·q·kᵀ - log_sum_exp),
// recomputed tile by tile, and D = rowsum(d_out ∘ out):
//
//   d_v = Pᵀ·d_out    dS = P ∘ (d_out·vᵀ - D)    d_q = scale·dS·k    d_k = scale·dSᵀ·q
//
// Two kernels of one form: a block takes rows of one axis, queries for d_q and keys for d_k and d_v,
// and walks over the rows of the other axis, which it calls columns. So each gradient is summed by
// one warp, in its registers, in one order: no atomics, no fp32 copy of d_q in memory and no pass
// that converts it. The price is that both kernels make the scores: 14·head_dim FLOPs per visible
// query-key pair instead of 10. Bound: the tensor cores; a warp of 16 rows also asks shared memory
// for what it can give, 1 byte per 16 FLOPs.
//
// Scores and their gradients become left operands where they lie, in the accumulators: with keys as
// rows, d_v and d_k take them transposed as they are. Two stages of columns, one barrier a tile.
#include "kernels/attention/attention_backward.h"
#include "kernels/attention/mma_tiles.h"
#include "kernels/gpu/gpu.h"
#include "kernels/gpu/gpu_properties.h"
#include "kernels/ptx/exp2.h"

namespace orchard::GPU_NAMESPACE {
namespace {

// Shared memory of a block: what sm_80 and sm_90 give, or what every GPU since sm_80 does.
enum class Room : std::uint8_t { ample, least };

struct TileShape {
  int warps;
  int m;        // rows of a warp / 16
  int columns;  // of a tile
  int step;     // of them, whose scores are in registers
  int blocks;   // of an SM, by registers
  constexpr int rows() const { return 16 * m * warps; }
  constexpr int threads() const { return 32 * warps; }
};

// Of a thread's registers d_k and d_v take m·head_dim, scores and their gradients m·step.
constexpr TileShape tile_shape(int head_dim, Gradients wanted, Room room) {
  if (head_dim > 96 && room == Room::least) {
    // 85 KB; 32 columns would be 103, and with half as many rows an SM would have but four warps. Steps
    // of 16 read their left operand for two mma, not four, and ask shared memory for up to a quarter more:
    // 107 of 128 bytes a clock at the 1024 FLOPs a clock and SM of these GPUs, half of sm_80's.
    return {.warps = 8, .m = 1, .columns = 16, .step = 16, .blocks = 1};
  }
  if (head_dim > 80 && room == Room::least) {
    // 79 KB; 64 columns would be 105.
    return {.warps = 8, .m = 1, .columns = 32, .step = 32, .blocks = 1};
  }
  if (head_dim > 64) {
    // 32 rows would spill. Eight warps share the columns: 90 KB for a head_dim of 80, 139 for 128.
    return {.warps = 8, .m = 1, .columns = 64, .step = 32, .blocks = 1};
  }
  // 32 rows ask shared memory for a third less than 16. Two blocks of sm_80's 163 KB: 56 KB, and
  // 74 KB for d_q.
  return {.warps = 4,
          .m = 2,
          .columns = wanted == Gradients::d_q ? 64 : 32,  // 64 would spill
          .step = 32,
          .blocks = 2};
}

// `first` are multiplied for the scores, `second` for the gradient of the probabilities.
template <int head_dim, Gradients wanted, Room room>
struct Storage {
  static constexpr TileShape shape = tile_shape(head_dim, wanted, room);
  struct Columns {
    MmaRows<head_dim, shape.columns> first, second;
    alignas(16) float log_sum_exp[shape.columns];  // where columns are queries
    alignas(16) float dots[shape.columns];
  };
  MmaRows<head_dim, shape.rows()> first_rows, second_rows;  // then gradients
  Columns stage[2];
  Destination destination;
};

// A pair's score and the gradient of its probability become the probability and the gradient of the
// score, but for the factor scale.
__device__ __forceinline__ void softmax_backward(float log2_scale, float log2_sum, float dot,
                                                 float& score, float& d_probability) {
  score = fast_exp2(fmaf(score, log2_scale, -log2_sum));
  d_probability = score * (d_probability - dot);
}

// Pairs that do not see each other contribute nothing; the log_sum_exp of their query may be -inf.
// `edge` counts rows from this lane's first one.
template <Gradients wanted, int m, int n>
__device__ __forceinline__ void mask_pairs(MmaSums<m, n>& scores, MmaSums<m, n>& d_scores,
                                           const Edge<wanted>& edge) {
#pragma unroll
  for (int i = 0; i < m; ++i) {
#pragma unroll
    for (int j = 0; j < n; ++j) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int column = 8 * j + lane() % 4 * 2 + c % 2, row = 16 * i + 8 * (c / 2);
        if (!edge.sees(row, column)) scores[i][j][c] = d_scores[i][j][c] = 0.0f;
      }
    }
  }
}

template <int m, int n>
__device__ __forceinline__ void scale_by(MmaSums<m, n>& sums, float factor) {
#pragma unroll
  for (auto& row : sums) {
#pragma unroll
    for (auto& columns : row) {
#pragma unroll
      for (float& sum : columns) sum *= factor;
    }
  }
}

template <int head_dim, Gradients wanted, Room room>
__global__ void __launch_bounds__(tile_shape(head_dim, wanted, room).threads(),
                                  tile_shape(head_dim, wanted, room).blocks)
    attention_backward_mma(Backward op) {
  constexpr TileShape shape = tile_shape(head_dim, wanted, room);
  constexpr int m = shape.m, n = shape.step / 8;
  constexpr bool for_queries = wanted == Gradients::d_q;
  constexpr Axis axis = for_queries ? Axis::queries : Axis::keys;
  const Problem& problem = op.problem;
  const int heads = for_queries ? problem.heads : problem.kv_heads;
  const int block = static_cast<int>(for_queries ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
  // The longest first: under a causal mask the last queries see the most keys, and the first keys
  // are seen by the most queries.
  const int slot = block / heads, row_head = block % heads;
  const DocumentTile tile = find_tile(problem.packing, axis, shape.rows(), slot);
  const Document& document = tile.document;
  const int first = tile.first;
  const int rows = min((for_queries ? document.queries : document.keys) - first, shape.rows());
  if (rows <= 0) return;

  const int group = problem.heads / problem.kv_heads;
  const int kv_head = for_queries ? row_head / group : row_head;
  const int row_begin = (for_queries ? document.query_begin : document.key_begin) + first;
  // Columns are counted as rows of their tensor.
  const int columns_end =
      for_queries ? document.key_begin + document.keys : document.query_begin + document.queries;
  auto& shared = shared_storage<Storage<head_dim, wanted, room>>();
  using Copier = RowCopier<shape.threads(), head_dim>;

  put_aside(shared.destination, {row_head, row_begin, rows});
  const Sight block_sight = sight_of<wanted>(document, problem.mask, first, first + rows);
  const int warp_row = warp() * 16 * m;
  const Sight sight = sight_of<wanted>(document, problem.mask, first + warp_row,
                                       first + min(warp_row + 16 * m, rows));
  // Where the diagonal cuts this lane's first row.
  const int shift = document.keys - document.queries;
  const int edge = first + warp_row + lane() / 4 +
                   (for_queries ? document.key_begin + shift + 1 : document.query_begin - shift);

  // Queues the copy of a tile of columns, queries of `head` or keys.
  const auto copy_columns = [&](auto& stage, [[maybe_unused]] int head, int column) {
    if constexpr (for_queries) {
      Copier({op.k, kv_head, problem.kv_heads, problem.head_dim}, 0, columns_end)
          .copy(stage.first, column);
      Copier({op.v, kv_head, problem.kv_heads, problem.head_dim}, 0, columns_end)
          .copy(stage.second, column);
    } else {
      Copier({op.q, head, problem.heads, problem.head_dim}, 0, columns_end)
          .copy(stage.first, column);
      Copier({op.d_out, head, problem.heads, problem.head_dim}, 0, columns_end)
          .copy(stage.second, column);
      static_assert(shape.columns <= shape.threads());
      const int i = static_cast<int>(threadIdx.x);
      if (i < shape.columns) {
        const std::int64_t at = std::int64_t{column + i} * problem.heads + head;
        const unsigned bytes = column + i < columns_end ? 4 : 0;
        cp_async_small<4>(&stage.log_sum_exp[i], op.log_sum_exp + at, bytes);
        cp_async_small<4>(&stage.dots[i], op.dots + at, bytes);
      }
    }
  };

  RowTerms<m> terms;
  if constexpr (for_queries) {
    terms = load_row_terms<m>(op, row_head, row_begin + warp_row, rows - warp_row);
  }
  MmaSums<m, head_dim / 8> d_first;                     // of q, or of k
  MmaSums<m, for_queries ? 1 : head_dim / 8> d_second;  // of v
  clear<m, head_dim / 8>(d_first);
  clear<m, for_queries ? 1 : head_dim / 8>(d_second);

  // The tiles of columns of all heads that read these rows, one after the other.
  const int tiles =
      (block_sight.any_end - block_sight.any_begin + shape.columns - 1) / shape.columns;
  const int last_head = for_queries ? row_head : (kv_head + 1) * group - 1;
  int head = for_queries ? row_head : kv_head * group;
  int column = block_sight.any_begin, tiles_left = tiles * (last_head - head + 1);
  if (tiles > 0) {
    const int rows_heads = for_queries ? problem.heads : problem.kv_heads;
    Copier({for_queries ? op.q : op.k, row_head, rows_heads, problem.head_dim}, row_begin, rows)
        .copy(shared.first_rows, 0);
    Copier({for_queries ? op.d_out : op.v, row_head, rows_heads, problem.head_dim}, row_begin, rows)
        .copy(shared.second_rows, 0);
    copy_columns(shared.stage[tiles_left % 2], head, column);
    cp_async_commit();
  }
  for (; tiles_left > 0; --tiles_left) {
    cp_async_wait<0>();
    __syncthreads();  // this tile is there, and the other stage is no longer read
    const int tile_column = column;
    const auto& stage = shared.stage[tiles_left % 2];
    column += shape.columns;
    if (column >= block_sight.any_end) {
      column = block_sight.any_begin;
      ++head;
    }
    if (tiles_left > 1) copy_columns(shared.stage[(tiles_left - 1) % 2], head, column);
    cp_async_commit();

#pragma unroll 1  // two steps at once would spill
    for (int step = 0; step < shape.columns; step += shape.step) {
      const int begin = tile_column + step, end = begin + shape.step;
      if (begin >= sight.any_end || end <= sight.any_begin) continue;
      MmaSums<m, n> scores, d_scores;
      multiply_transposed<m, n>(shared.first_rows, warp_row, stage.first, step, scores);
      multiply_transposed<m, n>(shared.second_rows, warp_row, stage.second, step, d_scores);
#pragma unroll
      for (int j = 0; j < n; ++j) {
        [[maybe_unused]] float2 sums, dots;  // of this lane's two columns
        if constexpr (!for_queries) {
          const int pair = step + 8 * j + lane() % 4 * 2;
          sums = load_shared(reinterpret_cast<const float2*>(&stage.log_sum_exp[pair]));
          dots = load_shared(reinterpret_cast<const float2*>(&stage.dots[pair]));
        }
#pragma unroll
        for (int i = 0; i < m; ++i) {
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            float log2_sum, dot;
            if constexpr (for_queries) {
              log2_sum = terms.log2_sum[i][c / 2];
              dot = terms.dot[i][c / 2];
            } else {
              log2_sum = (c % 2 ? sums.y : sums.x) * log2_e;
              dot = c % 2 ? dots.y : dots.x;
            }
            softmax_backward(op.log2_scale, log2_sum, dot, scores[i][j][c], d_scores[i][j][c]);
          }
        }
      }
      if (begin < sight.all_begin || end > sight.all_end) {
        mask_pairs<wanted, m, n>(scores, d_scores,
                                 {problem.mask, edge - begin, columns_end - begin});
      }
      if constexpr (!for_queries) multiply_add<m, n>(scores, stage.second, step, d_second);
      multiply_add<m, n>(d_scores, stage.first, step, d_first);
    }
  }

  __syncthreads();
  const Destination to = take_back(shared.destination);
  const auto store_gradient = [&](auto& buffer, auto& sums, bf16* gradient) {
    store_rows<m>(buffer, warp_row, sums,
                  HeadRows<bf16>(gradient, to.head, heads, problem.head_dim),
                  to.first_row + warp_row, to.rows - warp_row);
  };
  scale_by<m, head_dim / 8>(d_first, problem.scale);
  store_gradient(shared.first_rows, d_first, for_queries ? op.d_q : op.d_k);
  if constexpr (!for_queries) store_gradient(shared.second_rows, d_second, op.d_v);
}

template <int head_dim, Gradients wanted, Room room>
void launch_backward(Stream& stream, const Backward& backward) {
  constexpr TileShape shape = tile_shape(head_dim, wanted, room);
  static_assert(room == Room::ample ||
                sizeof(Storage<head_dim, wanted, room>) <= least_shared_bytes);
  constexpr bool for_queries = wanted == Gradients::d_q;
  const Problem& problem = backward.problem;
  const std::int64_t tiles =
      slots(problem.packing, for_queries ? Axis::queries : Axis::keys, shape.rows());
  const Extent3 grid =
      grid_of("AttentionBackward", tiles, for_queries ? problem.heads : problem.kv_heads);
  if (grid.x == 0) return;
  launch(stream,
         {.kernel = for_queries ? "attention_backward_mma for d_q"
                                : "attention_backward_mma for d_k and d_v",
          .grid = grid,
          .block = {shape.threads()},
          .shared_bytes = sizeof(Storage<head_dim, wanted, room>)},
         attention_backward_mma<head_dim, wanted, room>, backward);
}

// In the tiles that this GPU has room for. They differ in their columns alone, whose order is the
// same: so are the gradients' bits.
template <int head_dim, Gradients wanted>
void launch_backward(Stream& stream, const Backward& backward) {
  constexpr std::size_t ample = sizeof(Storage<head_dim, wanted, Room::ample>);
  if constexpr (ample > least_shared_bytes) {
    if (ample > gpu_properties(stream).shared_bytes) {
      return launch_backward<head_dim, wanted, Room::least>(stream, backward);
    }
  }
  launch_backward<head_dim, wanted, Room::ample>(stream, backward);
}

template <int head_dim>
void launch_both(Stream& stream, const Backward& backward) {
  launch_backward<head_dim, Gradients::d_q>(stream, backward);
  launch_backward<head_dim, Gradients::d_k_and_d_v>(stream, backward);
}

}  // namespace

void attention_backward_mma(Stream& stream, const AttentionBackward& op) {
  const Backward backward = backward_of(stream, op);
  const int head_dim = backward.problem.head_dim;
  (head_dim <= 64   ? launch_both<64>
   : head_dim <= 80 ? launch_both<80>
   : head_dim <= 96 ? launch_both<96>
                    : launch_both<128>)(stream, backward);
}

}  // namespace orchard::GPU_NAMESPACE
