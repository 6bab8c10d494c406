// Attention backward in bf16 on sm_90a (H100, H200), head_dim 64 and 128. The formulas and the form are
// those of attention_backward_sm80.cu: one kind of block walks over keys for d_q, one over queries for
// d_k and d_v, and each sum has one owner and one order.
//
// FLOPs: 14·head_dim per visible query-key pair, in tiles. Bound: the tensor cores, 4096 FLOPs a clock
// and SM. Of 128 bytes a clock of shared memory, products of 64 rows with 64 columns read 128, with 128
// columns 96, and those whose left operand is in registers 64.
//
// A block takes 128 rows, 64 for each of two warpgroups; one thread asks the copy engine for the tiles
// of columns, as far ahead as the ring is long. A warpgroup computes of a tile the scores, d_probabilities,
// d_v and at last d_k or d_q. The scores' arithmetic runs beside the product for d_probabilities, that of
// d_scores beside the one for d_v, and a tile's last product is started with the next one's scores; the
// other warpgroup fills what is left. Probabilities and d_scores become left operands in their registers.
#include <algorithm>
#include <type_traits>

#include "kernels/attention/attention_backward.h"
#include "kernels/attention/wgmma_tiles.h"
#include "kernels/gpu/gpu.h"
#include "kernels/ptx/barrier.h"
#include "kernels/ptx/exp2.h"

namespace orchard::GPU_NAMESPACE {
namespace {

constexpr int groups = 2;
constexpr int tile_rows = groups * group_rows;
constexpr int threads = (1 + groups) * warpgroup;  // producers and two consumers

struct TileShape {
  int columns;
  int stages;
};

// Of a consumer thread's 240 registers gradients take head_dim / 2 (d_q) or head_dim, scores and their
// gradients as many as there are columns, and these in bf16 half of that again.
constexpr TileShape tile_shape(int head_dim, Gradients wanted) {
  const bool for_queries = wanted == Gradients::d_q;
  // 16 to 64 KB a stage. For d_k and d_v 128 columns would spill, at a head_dim of 64, too.
  return {.columns = for_queries ? 128 : 64, .stages = for_queries && head_dim > 64 ? 2 : 4};
}

// What a block does: its rows, and the tiles of columns of all heads that read them, one head after
// the other. Rows and columns count as in their tensors. It lies in shared memory, as the loops want
// every register.
struct Work {
  int row_head, row_begin, rows;
  int head_begin;
  int column_begin, column_end;  // that any of the rows sees
  int document_end;              // from this column on there are other documents
  int edge;                      // where the diagonal cuts the first row
  int tiles;                     // of all heads
  int consumers;                 // threads of the warpgroups that have rows
  Sight sight[groups];
};

// `first` are multiplied for the scores, `second` for the gradient of the probabilities.
template <int head_dim, Gradients wanted>
struct Storage {
  static constexpr TileShape shape = tile_shape(head_dim, wanted);
  WgmmaRows<head_dim, tile_rows> first_rows, second_rows;
  WgmmaRows<head_dim, shape.columns> first[shape.stages], second[shape.stages];
  // Where columns are queries; with `first`.
  alignas(16) float log2_sum[shape.stages][shape.columns];
  alignas(16) float dot[shape.stages][shape.columns];
  Work work;
  std::uint64_t first_rows_full, second_rows_full;
  std::uint64_t first_full[shape.stages], first_empty[shape.stages];
  std::uint64_t second_full[shape.stages], second_empty[shape.stages];
};

#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <int head_dim, Gradients wanted>
__device__ Work work_of(const Problem& problem) {
  constexpr bool for_queries = wanted == Gradients::d_q;
  const int heads = for_queries ? problem.heads : problem.kv_heads;
  // The longest first, as in attention_backward_sm80.cu.
  const int block = static_cast<int>(for_queries ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
  const DocumentTile tile = find_tile(problem.packing, for_queries ? Axis::queries : Axis::keys,
                                      tile_rows, block / heads);
  const Document& document = tile.document;
  const int group = problem.heads / problem.kv_heads, row_head = block % heads;
  const int rows = min((for_queries ? document.queries : document.keys) - tile.first, tile_rows);
  const Sight sight = sight_of<wanted>(document, problem.mask, tile.first, tile.first + rows);
  constexpr int columns = tile_shape(head_dim, wanted).columns;
  const int tiles_of_head = (sight.any_end - sight.any_begin + columns - 1) / columns;
  const auto sight_of_group = [&](int i) {
    const int begin = i * group_rows, end = min(begin + group_rows, rows);
    return sight_of<wanted>(document, problem.mask, tile.first + begin, tile.first + end);
  };
  const int shift = document.keys - document.queries;
  return {.row_head = row_head,
          .row_begin = (for_queries ? document.query_begin : document.key_begin) + tile.first,
          .rows = rows,
          .head_begin = for_queries ? row_head / group : row_head * group,
          .column_begin = sight.any_begin,
          .column_end = sight.any_end,
          .document_end = for_queries ? document.key_begin + document.keys
                                      : document.query_begin + document.queries,
          .edge = tile.first +
                  (for_queries ? document.key_begin + shift + 1 : document.query_begin - shift),
          .tiles = tiles_of_head * (for_queries ? 1 : group),
          .consumers = (rows + group_rows - 1) / group_rows * warpgroup,
          .sight = {sight_of_group(0), sight_of_group(1)}};
}

// The tile at hand.
struct Walk {
  int i = 0, head, column;
  __device__ explicit Walk(const Work& work) : head(work.head_begin), column(work.column_begin) {}
  __device__ void advance(const Work& work, int columns) {
    ++i;
    column += columns;
    if (column < work.column_end) return;
    column = work.column_begin;
    ++head;
  }
};

// As the copy engine sees what is multiplied: boxes of tile_rows, and of the columns of a tile.
struct Maps {
  const TensorMap &first_rows, &second_rows, &first, &second;
};

// One thread.
template <int head_dim, Gradients wanted>
__device__ void produce(Storage<head_dim, wanted>& shared, const Maps& maps) {
  const Work& work = shared.work;
  constexpr TileShape shape = tile_shape(head_dim, wanted);
  if (work.tiles == 0) return;
  load_rows(shared.first_rows, maps.first_rows, work.row_head, work.row_begin,
            &shared.first_rows_full);
  for (Walk walk(work); walk.i < work.tiles; walk.advance(work, shape.columns)) {
    const Turn<shape.stages> turn(walk.i);
    mbarrier_wait(&shared.first_empty[turn.stage], turn.parity ^ 1);
    load_rows(shared.first[turn.stage], maps.first, walk.head, walk.column,
              &shared.first_full[turn.stage]);
    if (walk.i == 0) {  // no sooner than they are needed
      load_rows(shared.second_rows, maps.second_rows, work.row_head, work.row_begin,
                &shared.second_rows_full);
    }
    mbarrier_wait(&shared.second_empty[turn.stage], turn.parity ^ 1);
    load_rows(shared.second[turn.stage], maps.second, walk.head, walk.column,
              &shared.second_full[turn.stage]);
  }
}

// One warp, where columns are queries: their log_sum_exp and D. A head's lie `heads` apart, and begin
// anywhere, so that the copy engine cannot bring them.
template <int head_dim, Gradients wanted>
__device__ void produce_terms(Storage<head_dim, wanted>& shared, const Backward& op) {
  const Work& work = shared.work;
  constexpr TileShape shape = tile_shape(head_dim, wanted);
  constexpr int own = shape.columns / 32;
  for (Walk walk(work); walk.i < work.tiles; walk.advance(work, shape.columns)) {
    float log2_sum[own], dot[own];
#pragma unroll
    for (int j = 0; j < own; ++j) {
      const int query = walk.column + 32 * j + lane();
      const std::int64_t at = std::int64_t{query} * op.problem.heads + walk.head;
      const bool inside = query < work.document_end;
      log2_sum[j] = inside ? load(op.log_sum_exp + at) * log2_e : 0.0f;
      dot[j] = inside ? load(op.dots + at) : 0.0f;
    }
    const Turn<shape.stages> turn(walk.i);
    mbarrier_wait(&shared.first_empty[turn.stage], turn.parity ^ 1);
#pragma unroll
    for (int j = 0; j < own; ++j) {
      store_shared(&shared.log2_sum[turn.stage][32 * j + lane()], log2_sum[j]);
      store_shared(&shared.dot[turn.stage][32 * j + lane()], dot[j]);
    }
    mbarrier_arrive(&shared.first_full[turn.stage]);
  }
}

// The columns of a tile from `begin` on, which the document does not have.
template <int head_dim, Gradients wanted>
__device__ void zero_tail(Storage<head_dim, wanted>& shared, int stage, int begin, int consumers) {
  const int thread = static_cast<int>(threadIdx.x) - warpgroup;
  zero_rows(shared.first[stage], begin, thread, consumers);
  zero_rows(shared.second[stage], begin, thread, consumers);
  fence_proxy_async();
  bar_sync(1, static_cast<unsigned>(consumers));
}

// A warpgroup: its 64 rows.
template <int head_dim, Gradients wanted>
__device__ void consume(Storage<head_dim, wanted>& shared, const Backward& op) {
  const Work& work = shared.work;
  constexpr bool for_queries = wanted == Gradients::d_q;
  constexpr TileShape shape = tile_shape(head_dim, wanted);
  constexpr int columns = shape.columns;
  const Problem& problem = op.problem;
  const int group_row = (static_cast<int>(threadIdx.x) / warpgroup - 1) * group_rows;
  static_assert(for_queries || shape.stages > 2, "a skipped tile follows one that is still read");
  if (group_row >= work.rows) return;
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
  const auto terms_of = [&](const float(&of_columns)[columns], const float(&of_rows)[1][2], int j,
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
  const auto release = [](std::uint64_t* empty) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) mbarrier_arrive(empty);
  };

  Walk walk(work);
  int before = 0;  // the stage of the tile before
  // Goes on to a tile that the group's rows see. At most one is skipped: it is the other group's alone.
  const auto seek = [&] {
    for (; walk.i < work.tiles; walk.advance(work, columns)) {
      const Turn<shape.stages> turn(walk.i);
      const int stage = turn.stage, begin = walk.column, end = begin + columns;
      mbarrier_wait(&shared.first_full[stage], turn.parity);
      const bool is_seen = begin < sight.any_end && end > sight.any_begin;
      if (is_seen && end <= work.document_end) return true;
      mbarrier_wait(&shared.second_full[stage], turn.parity);
      if (end > work.document_end) {
        zero_tail(shared, stage, work.document_end - begin, work.consumers);
      }
      if (is_seen) return true;
      release(&shared.first_empty[stage]);
      release(&shared.second_empty[stage]);
    }
    return false;
  };
  const auto finish_tile_before = [&] {
    multiply_add(d_first, rounded_d_scores, shared.first[before]);
  };

  // The last product of a tile waits for the next tile. Each tile ends with nothing in flight: the
  // compiler would put waits behind all products otherwise. For the same reason the first tile has
  // code of its own.
  const auto do_tile = [&](auto is_first) {
    const Turn<shape.stages> turn(walk.i);
    const int stage = turn.stage, begin = walk.column, end = begin + columns;
    if constexpr (is_first) {
      mbarrier_wait(&shared.first_rows_full, 0);
    } else {
      finish_tile_before();
    }
    multiply_transposed(scores, shared.first_rows, shared.first[stage]);
    if constexpr (is_first) {
      mbarrier_wait(&shared.second_rows_full, 0);
    } else {
      wgmma_wait<1>();
      release(&shared.first_empty[before]);
      if constexpr (!for_queries) release(&shared.second_empty[before]);
    }
    mbarrier_wait(&shared.second_full[stage], turn.parity);
    multiply_transposed(d_scores, shared.second_rows, shared.second[stage]);
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
      release(&shared.second_empty[stage]);
    } else {
      round(scores, probabilities);
      multiply_add(d_second, probabilities, shared.second[stage]);
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
    walk.advance(work, columns);
  };

  if (seek()) {
    do_tile(std::true_type{});
    while (seek()) do_tile(std::false_type{});
    finish_tile_before();
    wgmma_wait<0>();
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

template <int head_dim, Gradients wanted>
__device__ void run_block(const Maps& maps, const Backward& op) {
  if (threadIdx.x == 0) {
    tma_prefetch(maps.first_rows);
    tma_prefetch(maps.first);
    tma_prefetch(maps.second_rows);
    tma_prefetch(maps.second);
  }
  const Work work = work_of<head_dim, wanted>(op.problem);
  if (work.rows <= 0) return;
  auto& shared = shared_storage<Storage<head_dim, wanted>>();
  if (threadIdx.x == 0) {
    shared.work = work;
    constexpr unsigned terms = wanted == Gradients::d_q ? 0 : 32;
    const auto consumers = static_cast<unsigned>(work.consumers / 32);
    mbarrier_init(&shared.first_rows_full, 1);
    mbarrier_init(&shared.second_rows_full, 1);
    for (int stage = 0; stage < tile_shape(head_dim, wanted).stages; ++stage) {
      mbarrier_init(&shared.first_full[stage], 1 + terms);
      mbarrier_init(&shared.second_full[stage], 1);
      mbarrier_init(&shared.first_empty[stage], consumers);
      mbarrier_init(&shared.second_empty[stage], consumers);
    }
    mbarrier_fence_init();
  }
  __syncthreads();
  if (threadIdx.x < warpgroup) {
    shrink_registers<24>();
    if (threadIdx.x == 0) produce(shared, maps);
    if constexpr (wanted == Gradients::d_k_and_d_v) {
      if (threadIdx.x / 32 == 1) produce_terms(shared, op);
    }
  } else {
    grow_registers<240>();
    consume(shared, op);
  }
}

#endif

// Both kinds of blocks in one grid: what one kind leaves of the multiprocessors the other takes. Those
// of keys come first, since they are longer. Of q and d_out there are boxes for rows and for columns; of
// k and v these are the same.
template <int head_dim>
__global__ void __launch_bounds__(threads, 1)
    attention_backward_wgmma(const __grid_constant__ TensorMap q_rows,
                             const __grid_constant__ TensorMap d_out_rows,
                             const __grid_constant__ TensorMap q_columns,
                             const __grid_constant__ TensorMap d_out_columns,
                             const __grid_constant__ TensorMap k,
                             const __grid_constant__ TensorMap v, Backward op,
                             unsigned key_blocks) {
#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  if (blockIdx.x < key_blocks) {
    run_block<head_dim, Gradients::d_k_and_d_v>({k, v, q_columns, d_out_columns}, op);
  } else {
    run_block<head_dim, Gradients::d_q>({q_rows, d_out_rows, k, v}, op);
  }
#endif
}

template <int head_dim>
void launch_backward(Stream& stream, const AttentionBackward& op, const Backward& backward) {
  constexpr int queries = tile_shape(head_dim, Gradients::d_k_and_d_v).columns;
  static_assert(tile_shape(head_dim, Gradients::d_q).columns == tile_rows, "boxes of k and v");
  constexpr std::size_t shared_bytes = std::max(sizeof(Storage<head_dim, Gradients::d_q>),
                                                sizeof(Storage<head_dim, Gradients::d_k_and_d_v>));
  static_assert(shared_bytes <= 227 * 1024);
  const Problem& problem = backward.problem;
  const std::int64_t key_blocks = slots(problem.packing, Axis::keys, tile_rows) * problem.kv_heads;
  const std::int64_t blocks =
      key_blocks + slots(problem.packing, Axis::queries, tile_rows) * problem.heads;
  require(blocks < (std::int64_t{1} << 31),
          "AttentionBackward: {} tiles of queries and keys exceed a grid (2^31 blocks)", blocks);
  launch(stream,
         {.kernel = "attention_backward_wgmma",
          .grid = {static_cast<unsigned>(blocks)},
          .block = {threads},
          .shared_bytes = shared_bytes},
         attention_backward_wgmma<head_dim>, tensor_map(op.q, tile_rows),
         tensor_map(op.d_out, tile_rows), tensor_map(op.q, queries), tensor_map(op.d_out, queries),
         tensor_map(op.k, tile_rows), tensor_map(op.v, tile_rows), backward,
         static_cast<unsigned>(key_blocks));
}

}  // namespace

void attention_backward_wgmma(Stream& stream, const AttentionBackward& op) {
  const Backward backward = backward_of(stream, op);
  (backward.problem.head_dim == 64 ? launch_backward<64> : launch_backward<128>)(stream, op,
                                                                                 backward);
}

}  // namespace orchard::GPU_NAMESPACE
