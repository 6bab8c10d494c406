// Attention forward in bf16 on tensor cores, from sm_80 on (FlashAttention-2, Dao 2023).
//
// FLOPs: 4·head_dim per visible query-key pair; tiles that no query sees are skipped, those that the
// mask cuts are computed in columns of 16. Bytes: q and out once, k and v once for each tile of
// queries that sees them, mostly from L2. Bound: the tensor cores, or the 16 exponentials a clock of
// an SM where head_dim is below 64.
//
// A block takes 128 queries of one head, a warp 32 of them: its scores of 64 keys and its part of
// `out` stay in registers, and what a warp reads from shared memory serves 32 rows. K and V have one
// buffer each, and two barriers a tile: while a block multiplies by K, V travels, and while it
// exponentiates and multiplies by V, the next K. A second block on the SM fills the gaps.
//
// Scores are in units of log 2: one multiply-add before the exponential. Each row keeps the largest
// score so far and, relative to it, sums of probabilities and of probabilities times v.
#include "kernels/attention/attention_gpu.h"
#include "kernels/attention/mma_tiles.h"
#include "kernels/attention/softmax.h"
#include "kernels/gpu/gpu.h"

namespace orchard::GPU_NAMESPACE {
namespace {

struct Forward {
  Problem problem;
  const bf16 *q, *k, *v;
  bf16* out;
  float* log_sum_exp;
  float log2_scale;  // in the constant bank: an operand of its own, and no register
};

struct TileShape {
  int warps;
  int m;       // rows of a warp / 16
  int keys;    // of a tile
  int blocks;  // of an SM, by registers
  constexpr int rows() const { return 16 * m * warps; }
  constexpr int threads() const { return 32 * warps; }
};

// Two blocks of four warps leave 255 registers to a thread: of 32 rows `out` takes head_dim, the
// scores as many as there are keys, the running softmax 8, operands and addresses some 60.
constexpr TileShape tile_shape(int head_dim) {
  if (head_dim > 96) {
    // Decoders. 64 keys would spill. 52 KB of shared memory.
    return {.warps = 4, .m = 2, .keys = 32, .blocks = 2};
  }
  // Vision towers and small models: 37 KB for a head_dim of 64, 53 KB for 96.
  return {.warps = 4, .m = 2, .keys = 64, .blocks = 2};
}

template <int head_dim>
struct Storage {
  static constexpr TileShape shape = tile_shape(head_dim);
  MmaRows<head_dim, shape.rows()> q;  // then out
  MmaRows<head_dim, shape.keys> k, v;
  Destination destination;
};

template <int head_dim>
__global__ void __launch_bounds__(tile_shape(head_dim).threads(), tile_shape(head_dim).blocks)
    attention_forward_mma(Forward op) {
  constexpr TileShape shape = tile_shape(head_dim);
  constexpr int m = shape.m, n = shape.keys / 8;
  const Problem& problem = op.problem;
  const int head = static_cast<int>(blockIdx.x) % problem.heads;
  // From the last tile to the first: under a causal mask the last have the most keys.
  const int slot = static_cast<int>(gridDim.x - 1 - blockIdx.x) / problem.heads;
  const DocumentTile tile = find_tile(problem.packing, Axis::queries, shape.rows(), slot);
  const Document& document = tile.document;
  const int first = tile.first;
  const int rows = min(document.queries - first, shape.rows());
  if (rows <= 0) return;

  const int kv_head = head / (problem.heads / problem.kv_heads);
  using Copier = RowCopier<shape.threads(), head_dim>;
  const Copier q({op.q, head, problem.heads, problem.head_dim}, document.query_begin + first, rows);
  const Copier k({op.k, kv_head, problem.kv_heads, problem.head_dim}, document.key_begin,
                 document.keys);
  const Copier v({op.v, kv_head, problem.kv_heads, problem.head_dim}, document.key_begin,
                 document.keys);
  const auto visible_keys = [&](int row) {
    return static_cast<int>(document.visible_keys(problem.mask, first + row));
  };
  auto& shared = shared_storage<Storage<head_dim>>();
  // This warp's rows, and the keys that its last one sees: none where it has no rows.
  const int warp_row = warp() * 16 * m;
  const int warp_seen = warp_row < rows ? visible_keys(min(warp_row + 16 * m, rows) - 1) : 0;
  RunningRows<m> running;
  running.clear();
  MmaSums<m, head_dim / 8> out;
  clear<m, head_dim / 8>(out);

  const int diagonal = first + 1 + document.keys - document.queries;  // keys that row 0 sees
  const int seen = visible_keys(rows - 1);
  // Every row of the warp sees all keys of the tiles before this one.
  const int whole = warp_row < rows ? visible_keys(warp_row) / shape.keys * shape.keys : 0;
  put_aside(shared.destination, {head, document.query_begin + first, rows});
  if (seen > 0) {
    q.copy(shared.q, 0);
    k.copy(shared.k, 0);
    cp_async_commit();
  }
  for (int key = 0; key < seen; key += shape.keys) {
    cp_async_wait<0>();
    __syncthreads();  // K is there, and the V before is no longer read
    v.copy(shared.v, key);
    cp_async_commit();

    MmaSums<m, n> scores;
    const int used = min(warp_seen - key, shape.keys);
    const bool cut = key >= whole;
    if (!cut) {
      multiply_transposed<m, n>(shared.q, warp_row, shared.k, 0, scores);
    } else if (used > 0) {
      multiply_transposed<m, n>(shared.q, warp_row, shared.k, 0, scores, used);
      mask_scores<m, n>(scores, problem.mask, diagonal + warp_row + lane() / 4 - key,
                        document.keys - key);
    }

    cp_async_wait<0>();
    __syncthreads();  // V is there, and K is no longer read
    if (key + shape.keys < seen) k.copy(shared.k, key + shape.keys);
    cp_async_commit();

    if (used <= 0) continue;
    float shrink[m][2];
    online_softmax<m, n>(scores, op.log2_scale, running, shrink);
    rescale<m, head_dim / 8>(out, shrink);
    if (cut) {
      multiply_add<m, n>(scores, shared.v, 0, out, used);
    } else {
      multiply_add<m, n>(scores, shared.v, 0, out);
    }
  }

  __syncthreads();
  const Destination to = take_back(shared.destination);
  float inverse[m][2];
#pragma unroll
  for (int i = 0; i < m; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const RowTotal total = total_of(running, i, half, op.log2_scale);
      inverse[i][half] = total.inverse;
      const int row = warp_row + 16 * i + 8 * half + lane() / 4;
      if (lane() % 4 == 0 && row < to.rows) {
        store(op.log_sum_exp + std::int64_t{to.first_row + row} * problem.heads + to.head,
              total.log_sum_exp);
      }
    }
  }
  rescale<m, head_dim / 8>(out, inverse);
  const HeadRows<bf16> out_rows(op.out, to.head, problem.heads, problem.head_dim);
  store_rows<m>(shared.q, warp_row, out, out_rows, to.first_row + warp_row, to.rows - warp_row);
}

template <int head_dim>
void launch_forward(Stream& stream, const AttentionForward& op) {
  constexpr TileShape shape = tile_shape(head_dim);
  const Forward forward{.problem = problem_of("AttentionForward", op),
                        .q = op.q.data<bf16>(),
                        .k = op.k.data<bf16>(),
                        .v = op.v.data<bf16>(),
                        .out = op.out.data<bf16>(),
                        .log_sum_exp = op.log_sum_exp.data<float>(),
                        .log2_scale = op.scale * log2_e};
  const Extent3 grid =
      grid_of("AttentionForward", slots(forward.problem.packing, Axis::queries, shape.rows()),
              forward.problem.heads);
  if (grid.x == 0) return;
  launch(stream,
         {.kernel = "attention_forward_mma",
          .grid = grid,
          .block = {shape.threads()},
          .shared_bytes = sizeof(Storage<head_dim>)},
         attention_forward_mma<head_dim>, forward);
}

}  // namespace

void attention_forward_mma(Stream& stream, const AttentionForward& op) {
  const std::int64_t head_dim = op.q.dim(2);
  (head_dim <= 64   ? launch_forward<64>
   : head_dim <= 80 ? launch_forward<80>
   : head_dim <= 96 ? launch_forward<96>
                    : launch_forward<128>)(stream, op);
}

}  // namespace orchard::GPU_NAMESPACE
