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
#include "kernels/gpu/gpu.h"
#include "kernels/ptx/exp2.h"

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

// The running softmax of the two rows of each 16 that a lane shares with three others.
template <int m>
struct RunningRows {
  float max[m][2];
  float sum[m][2];  // of this lane's columns
};

__device__ float quad_max(float value) {
  value = fmaxf(value, __shfl_xor_sync(all_lanes, value, 1));
  return fmaxf(value, __shfl_xor_sync(all_lanes, value, 2));
}

__device__ float quad_sum(float value) {
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

// Scores become probabilities relative to the new largest score, to which `out` is brought as well.
template <int m, int n, int columns>
__device__ __forceinline__ void online_softmax(MmaSums<m, n>& scores, float scale,
                                               RunningRows<m>& rows, MmaSums<m, columns>& out) {
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
      const float shrink = fast_exp2(old_max * scale - subtract);
      float sum = rows.sum[i][half] * shrink;
#pragma unroll
      for (int j = 0; j < n; ++j) {
#pragma unroll
        for (int c = 2 * half; c < 2 * half + 2; ++c) {
          scores[i][j][c] = fast_exp2(fmaf(scores[i][j][c], scale, -subtract));
          sum += scores[i][j][c];
        }
      }
#pragma unroll
      for (int j = 0; j < columns; ++j) {
        out[i][j][2 * half] *= shrink;
        out[i][j][2 * half + 1] *= shrink;
      }
      rows.max[i][half] = largest;
      rows.sum[i][half] = sum;
    }
  }
}

template <int head_dim>
__global__ void __launch_bounds__(tile_shape(head_dim).threads(), tile_shape(head_dim).blocks)
    attention_forward_mma(Forward op) {
  constexpr TileShape shape = tile_shape(head_dim);
  constexpr int m = shape.m, n = shape.keys / 8;
  const Problem& problem = op.problem;
  const int head = static_cast<int>(blockIdx.x) % problem.heads;
  // From the last tile to the first: under a causal mask the last have the most keys.
  const int slot = static_cast<int>(gridDim.x - 1 - blockIdx.x) / problem.heads;
  const auto [document, first] = find_tile(problem.packing, Axis::queries, shape.rows(), slot);
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
  MmaSums<m, head_dim / 8> out;
#pragma unroll
  for (int i = 0; i < m; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      running.max[i][half] = -infinity;
      running.sum[i][half] = 0.0f;
    }
#pragma unroll
    for (auto& columns : out[i]) {
#pragma unroll
      for (float& sum : columns) sum = 0.0f;
    }
  }

  const int diagonal = first + 1 + document.keys - document.queries;  // keys that row 0 sees
  const int seen = visible_keys(rows - 1);
  // Every row of the warp sees all keys of the tiles before this one.
  const int whole = warp_row < rows ? visible_keys(warp_row) / shape.keys * shape.keys : 0;
  if (threadIdx.x == 0) {
    store_shared(&shared.destination, {head, document.query_begin + first, rows});
  }
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
    online_softmax<m, n>(scores, op.log2_scale, running, out);
    if (cut) {
      multiply_add<m, n>(scores, shared.v, 0, out, used);
    } else {
      multiply_add<m, n>(scores, shared.v, 0, out);
    }
  }

  __syncthreads();
  const Destination to = load_shared(&shared.destination);
#pragma unroll
  for (int i = 0; i < m; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float total = quad_sum(running.sum[i][half]);
      const float inverse = total == 0.0f ? 0.0f : 1.0f / total;
#pragma unroll
      for (int j = 0; j < head_dim / 8; ++j) {
        out[i][j][2 * half] *= inverse;
        out[i][j][2 * half + 1] *= inverse;
      }
      const int row = warp_row + 16 * i + 8 * half + lane() / 4;
      if (lane() % 4 == 0 && row < to.rows) {
        const float log_sum = running.max[i][half] * problem.scale + logf(total);
        store(op.log_sum_exp + std::int64_t{to.first_row + row} * problem.heads + to.head,
              total == 0.0f ? -infinity : log_sum);
      }
    }
  }
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
