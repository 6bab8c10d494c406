// Attention backward in bf16 on sm_90a (H100, H200), head_dim 64 and 128. The formulas and the form are
// those of attention_backward_sm80.cu: one kind of block walks over keys for d_q, one over queries for
// d_k and d_v, and each sum has one owner and one order.
//
// FLOPs: 14·head_dim per visible query-key pair, in tiles. Bound: the tensor cores, 4096 FLOPs a clock
// and SM. Of 128 bytes a clock of shared memory, products of 64 rows with 64 columns read 128, with 128
// columns 96, and those whose left operand is in registers 64.
//
// Blocks are persistent, one an SM, and go through tiles of 128 rows, 64 for each of two warpgroups, in the
// order of tile_queue.h. One warp asks the copy engine for a tile's rows and for the tiles of columns, as
// far ahead as the ring is long, across the borders of tiles, and another one finds the next tile meanwhile;
// the warpgroups meet its copies when they have stored the last one's gradients. A warpgroup computes of a
// tile of columns the scores, d_probabilities, d_v and at last d_k or d_q. The scores' arithmetic runs
// beside the product for d_probabilities, that of d_scores beside the one for d_v, and a tile's last product
// is started with the next one's scores; the other warpgroup fills what is left. Probabilities and d_scores
// become left operands in their registers.
#include <type_traits>

#include "kernels/attention/backward_tiles_sm90.h"
#include "kernels/gpu/gpu.h"
#include "kernels/ptx/exp2.h"

namespace orchard::GPU_NAMESPACE {
namespace {

using namespace backward_tiles;

// A warpgroup: its 64 rows of a tile.
template <int head_dim, Gradients wanted>
__device__ __forceinline__ void consume_tile(Storage<head_dim>& shared, const Backward& op,
                                             const Work& work) {
  auto& tiles = tiles_of<wanted>(shared);
  auto& ring = ring_of<wanted>(shared);
  constexpr bool for_queries = wanted == Gradients::d_q;
  constexpr TileShape shape = tile_shape(head_dim, wanted);
  constexpr int columns = shape.columns;
  const Problem& problem = op.problem;
  const int group_row = (static_cast<int>(threadIdx.x) / warpgroup - 1) * group_rows;
  static_assert(for_queries || shape.stages > 2, "a skipped tile follows one that is still read");
  const int warp_row = group_row + static_cast<int>(threadIdx.x) % warpgroup / 32 * 16;
  const int row = warp_row + lane() / 4;  // and 8 further
  const Sight& sight = work.sight[group_row / group_rows];
  float d_first[head_dim / 2];                     // of q, or of k
  float d_second[for_queries ? 1 : head_dim / 2];  // of v
#pragma unroll
  for (float& sum : d_first) sum = 0.0f;
#pragma unroll
  for (float& sum : d_second) sum = 0.0f;
  float scores[columns / 2], d_scores[columns / 2];
  unsigned probabilities[columns / 16][4], rounded_d_scores[columns / 16][4];
  RowTerms<1> terms;
  if constexpr (for_queries) {
    terms = load_row_terms<1>(op, work.row_head, work.row_begin + warp_row, work.rows - warp_row);
  }

  // Of this lane's four sums of columns 8·j on.
  const auto terms_of = [&](const auto& of_columns, const float(&of_rows)[1][2], int j,
                            float(&out)[4]) {
    if constexpr (for_queries) {
      out[0] = out[1] = of_rows[0][0];
      out[2] = out[3] = of_rows[0][1];
    } else {
      const float2 pair =
          load_shared(reinterpret_cast<const float2*>(of_columns + 8 * j + lane() % 4 * 2));
      out[0] = out[2] = pair.x;
      out[1] = out[3] = pair.y;
    }
  };
  const auto multiply_transposed = [&](auto& sums, const auto& rows, const auto& tile) {
    // From a shuffle each time: descriptors that stay from tile to tile would take 32 registers.
    const int own_row = (warp() / (warpgroup / 32) - 1) * group_rows;
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < head_dim / 16; ++step) {
      wgmma_m64k16<Transposed::no, Transposed::no>(sums, columns_of(rows, own_row, step),
                                                   columns_of(tile, 0, step), step > 0);
    }
    wgmma_commit();
  };
  const auto multiply_add = [&](auto& sums, const auto& left, const auto& tile) {
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < columns / 16; ++step) {
      wgmma_m64k16<Transposed::yes>(sums, left[step], rows_of(tile, step), true);
    }
    wgmma_commit();
  };
  const auto round = [](const auto& sums, auto& operand) {
#pragma unroll
    for (int step = 0; step < columns / 16; ++step) round_sums(sums, step, operand[step]);
  };

  WalkOf<head_dim, wanted> walk(work);
  int before = 0;  // the stage of the tile before
  // Goes on to a tile that the group's rows see. Between two that they see at most one is skipped: it is
  // the other group's alone. A group without rows skips all.
  const auto seek = [&] {
    for (; !walk.is_over(work); walk.advance(work)) {
      const Turn<shape.stages> turn(walk.turn);
      const int stage = turn.stage, begin = walk.column, end = begin + columns;
      mbarrier_wait(&ring.first_full[stage], turn.parity);
      if (begin < sight.any_end && end > sight.any_begin) return true;
      mbarrier_wait(&ring.second_full[stage], turn.parity);
      release(&ring.first_empty[stage]);
      release(&ring.second_empty[stage]);
    }
    return false;
  };
  const auto finish_tile_before = [&] {
    multiply_add(d_first, rounded_d_scores, tiles.first[before]);
  };

  // The last product of a tile waits for the next tile. Each tile ends with nothing in flight: the
  // compiler would put waits behind all products otherwise. For the same reason the first tile has
  // code of its own.
  const auto do_tile = [&](auto is_first) {
    const Turn<shape.stages> turn(walk.turn);
    const int stage = turn.stage, begin = walk.column, end = begin + columns;
    if constexpr (is_first) {
      mbarrier_wait(&ring.first_rows_full, work.rows_parity);
    } else {
      finish_tile_before();
    }
    multiply_transposed(scores, tiles.first_rows, tiles.first[stage]);
    if constexpr (is_first) {
      mbarrier_wait(&ring.second_rows_full, work.rows_parity);
    } else {
      wgmma_wait<1>();
      release(&ring.first_empty[before]);
      if constexpr (!for_queries) release(&ring.second_empty[before]);
    }
    mbarrier_wait(&ring.second_full[stage], turn.parity);
    multiply_transposed(d_scores, tiles.second_rows, tiles.second[stage]);
    wgmma_wait<1>();
#pragma unroll
    for (int j = 0; j < columns / 8; ++j) {
      float log2_sum[4];
      terms_of(shared.log2_sum[stage], terms.log2_sum, j, log2_sum);
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        float& score = scores[4 * j + c];
        score = fast_exp2(fmaf(score, op.log2_scale, -log2_sum[c]));
      }
    }
    // Pairs that do not see each other contribute nothing; the log_sum_exp of their query may be -inf.
    if (begin < sight.all_begin || end > sight.all_end) {
      const int origin = begin + lane() % 4 * 2;
      const Edge<wanted> here{problem.mask, work.edge + row - origin, work.document_end - origin};
#pragma unroll
      for (int s = 0; s < columns / 2; ++s) {
        if (!here.sees(8 * (s / 2 % 2), 8 * (s / 4) + s % 2)) scores[s] = 0.0f;
      }
    }
    if constexpr (for_queries) {
      wgmma_wait<0>();
      release(&ring.second_empty[stage]);
    } else {
      round(scores, probabilities);
      multiply_add(d_second, probabilities, tiles.second[stage]);
      wgmma_wait<1>();
    }
#pragma unroll
    for (int j = 0; j < columns / 8; ++j) {
      float dot[4];
      terms_of(shared.dot[stage], terms.dot, j, dot);
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        float& d_score = d_scores[4 * j + c];
        d_score = scores[4 * j + c] * (d_score - dot[c]);
      }
    }
    round(d_scores, rounded_d_scores);
    wgmma_wait<0>();
    before = stage;
    walk.advance(work);
  };

  if (seek()) {
    do_tile(std::true_type{});
    while (seek()) do_tile(std::false_type{});
    release(&ring.rows_empty);
    finish_tile_before();
    wgmma_wait<0>();
    release(&ring.first_empty[before]);
    if constexpr (!for_queries) release(&ring.second_empty[before]);
  } else if (work.turn_begin != work.turn_end) {  // the other group's rows were loaded
    release(&ring.rows_empty);
  }

  const auto store_gradient = [&](const auto& sums, float factor, bf16* gradient, int heads) {
    const HeadRows<bf16> to(gradient, work.row_head, heads, head_dim);
    store_sums<head_dim>(sums, factor, to, work.row_begin + warp_row, work.rows - warp_row);
  };
  if constexpr (for_queries) {
    store_gradient(d_first, problem.scale, op.d_q, problem.heads);
  } else {
    store_gradient(d_first, problem.scale, op.d_k, problem.kv_heads);
    store_gradient(d_second, 1.0f, op.d_v, problem.kv_heads);
  }
}

// Of q and d_out there are boxes for rows and for columns; of k and v these are the same.
template <int head_dim>
__global__ void __launch_bounds__(threads, 1)
    attention_backward_wgmma(const __grid_constant__ TensorMap q_rows,
                             const __grid_constant__ TensorMap d_out_rows,
                             const __grid_constant__ TensorMap q_columns,
                             const __grid_constant__ TensorMap d_out_columns,
                             const __grid_constant__ TensorMap k,
                             const __grid_constant__ TensorMap v, Backward op, TileQueue queue,
                             unsigned key_tiles) {
  constexpr Gradients d_q = Gradients::d_q, d_k_and_d_v = Gradients::d_k_and_d_v;
  auto& shared = shared_storage<Storage<head_dim>>();
  if (threadIdx.x == 0) {
    for (const TensorMap* const map : {&q_rows, &d_out_rows, &q_columns, &d_out_columns, &k, &v}) {
      tma_prefetch(*map);
    }
    initialise(shared.ring_for_keys);
    initialise(shared.ring_for_queries);
    mbarrier_init(&shared.keys_done, groups * warpgroup / 32);
    mbarrier_fence_init();
  }
  __syncthreads();
  if (threadIdx.x < warpgroup) {
    shrink_registers<24>();
    switch (threadIdx.x / 32) {
      case 0: {
        unsigned number = take_tile(queue);
        schedule(shared.ring_for_keys, op.problem, queue, key_tiles, number);
        return schedule(shared.ring_for_queries, op.problem, queue, queue.tiles, number);
      }
      case 1:
        produce<head_dim, d_k_and_d_v>(shared, {k, v, q_columns, d_out_columns});
        return produce<head_dim, d_q>(shared, {q_rows, d_out_rows, k, v});
      case 2:
        return produce_terms(shared, op);
      case 3:
        zero_tails<head_dim, d_k_and_d_v>(shared);
        return zero_tails<head_dim, d_q>(shared);
    }
  } else {
    grow_registers<240>();
    for_each_tile(shared.ring_for_keys,
                  [&](const Work& work) { consume_tile<head_dim, d_k_and_d_v>(shared, op, work); });
    release(&shared.keys_done);
    for_each_tile(shared.ring_for_queries,
                  [&](const Work& work) { consume_tile<head_dim, d_q>(shared, op, work); });
  }
}

template <int head_dim>
void launch_backward(Stream& stream, const AttentionBackward& op, const Backward& backward) {
  constexpr int queries = tile_shape(head_dim, Gradients::d_k_and_d_v).columns;
  static_assert(tile_shape(head_dim, Gradients::d_q).columns == tile_rows, "boxes of k and v");
  const Problem& problem = backward.problem;
  const std::int64_t key_tiles = slots(problem.packing, Axis::keys, tile_rows) * problem.kv_heads;
  const std::int64_t query_tiles = slots(problem.packing, Axis::queries, tile_rows) * problem.heads;
  const TileQueue queue = tile_queue("AttentionBackward", stream, key_tiles + query_tiles);
  launch(stream,
         {.kernel = "attention_backward_wgmma",
          .grid = {queue.blocks},
          .block = {threads},
          .shared_bytes = sizeof(Storage<head_dim>)},
         attention_backward_wgmma<head_dim>, tensor_map(op.q, tile_rows),
         tensor_map(op.d_out, tile_rows), tensor_map(op.q, queries), tensor_map(op.d_out, queries),
         tensor_map(op.k, tile_rows), tensor_map(op.v, tile_rows), backward, queue,
         static_cast<unsigned>(key_tiles));
}

}  // namespace

void attention_backward_wgmma(Stream& stream, const AttentionBackward& op) {
  const Backward backward = backward_of(stream, op);
  (backward.problem.head_dim == 64 ? launch_backward<64> : launch_backward<128>)(stream, op,
                                                                                 backward);
}

}  // namespace orchard::GPU_NAMESPACE
