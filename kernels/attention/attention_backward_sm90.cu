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
//
// Tiles of keys, for d_k and d_v, come first, as they are longer, and then those of queries: a block changes
// kind once at most. The kinds have rings of their own, as different barriers count different arrivals, in
// the same shared memory, which changes hands when the consumers have done their last tile of keys.
#include <type_traits>

#include "kernels/attention/attention_backward.h"
#include "kernels/attention/tile_queue.h"
#include "kernels/attention/wgmma_tiles.h"
#include "kernels/gpu/gpu.h"
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

// What a block does with a tile: its rows, and the tiles of columns of all heads that read them, one head
// after the other. Rows and columns count as in their tensors. It lies in shared memory, as the loops want
// every register.
struct Work {
  int rows = 0;  // 0: there are no more tiles of this kind
  int row_head, row_begin;
  int head_begin;
  int column_begin, column_end;   // that any of the rows sees
  int document_end;               // from this column on there are other documents
  int edge;                       // where the diagonal cuts the first row
  unsigned turn_begin, turn_end;  // of the ring; none where no column sees the rows
  unsigned number;                // of the block's tiles of this kind
  unsigned rows_parity;  // of the barriers of rows, which are loaded where some column sees them
  Sight sight[groups];
};

// What the copy engine brings. `first` are multiplied for the scores, `second` for the gradient of the
// probabilities.
template <int head_dim, Gradients wanted>
struct Tiles {
  static constexpr TileShape shape = tile_shape(head_dim, wanted);
  WgmmaRows<head_dim, tile_rows> first_rows, second_rows;
  WgmmaRows<head_dim, shape.columns> first[shape.stages], second[shape.stages];
};

// Tiles that the producer has told of: the one at hand and the next.
constexpr int tiles_known = 2;

// How they change hands, whatever groups have rows and see columns: barriers that counted otherwise for
// each tile could not outlive it.
template <int head_dim, Gradients wanted>
struct Ring {
  static constexpr int stages = tile_shape(head_dim, wanted).stages;
  Work work[tiles_known];
  std::uint64_t work_full[tiles_known], work_empty[tiles_known];
  std::uint64_t work_asked;  // all copies of a tile are under way
  std::uint64_t first_rows_full, second_rows_full, rows_empty;
  std::uint64_t first_full[stages], first_empty[stages];
  std::uint64_t second_full[stages], second_empty[stages];
  // For the warp that zeroes what lies behind a document's last column; one after the other.
  std::uint64_t tail_full[stages];
};

template <int head_dim>
struct Storage {
  static constexpr Gradients d_q = Gradients::d_q, d_k_and_d_v = Gradients::d_k_and_d_v;
  static constexpr TileShape of_queries = tile_shape(head_dim, d_k_and_d_v);
  union {
    Tiles<head_dim, d_k_and_d_v> for_keys;
    Tiles<head_dim, d_q> for_queries;
  };
  // Where columns are queries; with `first`.
  alignas(16) float log2_sum[of_queries.stages][of_queries.columns];
  alignas(16) float dot[of_queries.stages][of_queries.columns];
  Ring<head_dim, d_k_and_d_v> ring_for_keys;
  Ring<head_dim, d_q> ring_for_queries;
  std::uint64_t keys_done;  // the tiles' memory is free for those of queries
};
static_assert(sizeof(Storage<64>) <= 227 * 1024 && sizeof(Storage<128>) <= 227 * 1024);

#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <Gradients wanted, int head_dim>
__device__ auto& tiles_of(Storage<head_dim>& shared) {
  if constexpr (wanted == Gradients::d_q) {
    return shared.for_queries;
  } else {
    return shared.for_keys;
  }
}

template <Gradients wanted, int head_dim>
__device__ auto& ring_of(Storage<head_dim>& shared) {
  if constexpr (wanted == Gradients::d_q) {
    return shared.ring_for_queries;
  } else {
    return shared.ring_for_keys;
  }
}

__device__ inline void release(std::uint64_t* empty) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) mbarrier_arrive(empty);
}

// Tells of a tile what follows from its groups' `sight`, of the ring only how many turns it takes. By one
// thread, into shared memory, field by field: a producer has few registers.
template <int head_dim, Gradients wanted>
__device__ void describe(Work& work, const Problem& problem, const DocumentTile& tile, int rows,
                         int row_head) {
  constexpr bool for_queries = wanted == Gradients::d_q;
  constexpr int columns = tile_shape(head_dim, wanted).columns;
  const Document& document = tile.document;
  const int group = problem.heads / problem.kv_heads;
  work.rows = rows;
  work.row_head = row_head;
  work.row_begin = (for_queries ? document.query_begin : document.key_begin) + tile.first;
  work.head_begin = for_queries ? row_head / group : row_head * group;
  work.document_end =
      for_queries ? document.key_begin + document.keys : document.query_begin + document.queries;
  const int shift = document.keys - document.queries;
  work.edge =
      tile.first + (for_queries ? document.key_begin + shift + 1 : document.query_begin - shift);
  work.column_begin = work.sight[0].any_begin;
  work.column_end = work.sight[(rows - 1) / group_rows].any_end;
  const int tiles_of_head = (work.column_end - work.column_begin + columns - 1) / columns;
  work.turn_end = static_cast<unsigned>(tiles_of_head * (for_queries ? 1 : group));
}

template <Gradients wanted>
__device__ Sight sight_of_group(const Problem& problem, const DocumentTile& tile, int rows,
                                int group) {
  const int begin = group * group_rows, end = min(begin + group_rows, rows);
  if (begin >= end) return {0, 0, 0, 0};  // sees no column
  return sight_of<wanted>(tile.document, problem.mask, tile.first + begin, tile.first + end);
}

// The tile of columns at hand.
template <int columns>
struct Walk {
  unsigned turn;
  int head, column;
  __device__ explicit Walk(const Work& work)
      : turn(work.turn_begin), head(work.head_begin), column(work.column_begin) {}
  __device__ void advance(const Work& work) {
    ++turn;
    column += columns;
    if (column < work.column_end) return;
    column = work.column_begin;
    ++head;
  }
  __device__ bool is_over(const Work& work) const { return turn == work.turn_end; }
  // Whether other documents begin in it.
  __device__ bool is_tail(const Work& work) const { return column + columns > work.document_end; }
};
template <int head_dim, Gradients wanted>
using WalkOf = Walk<tile_shape(head_dim, wanted).columns>;

// As the copy engine sees what is multiplied: boxes of tile_rows, and of the columns of a tile.
struct Maps {
  const TensorMap &first_rows, &second_rows, &first, &second;
};

// One warp takes tiles from the queue and tells of them, no sooner than the copies of the one before are
// under way: what it has taken no other block does. `number` is the queue's next, and becomes the first
// that is not of this kind; those that are lie below `end`.
template <int head_dim, Gradients wanted>
__device__ void schedule(Ring<head_dim, wanted>& ring, const Problem& problem,
                         const TileQueue& queue, unsigned end, unsigned& number) {
  constexpr bool for_queries = wanted == Gradients::d_q;
  const int heads = for_queries ? problem.heads : problem.kv_heads;
  const auto place_of = [&](unsigned tile_number) {
    return static_cast<int>(for_queries ? queue.tiles - 1 - tile_number : tile_number);
  };
  for (unsigned i = 0;; ++i) {
    DocumentTile tile{};
    int rows = 0;
    for (; number < end; number = take_tile(queue)) {
      // The longest first, as in attention_backward_sm80.cu.
      tile = find_tile(problem.packing, for_queries ? Axis::queries : Axis::keys, tile_rows,
                       place_of(number) / heads);
      rows = (for_queries ? tile.document.queries : tile.document.keys) - tile.first;
      if (rows > 0) break;
    }
    const Turn<tiles_known> slot(i);
    Work& work = ring.work[slot.stage];
    mbarrier_wait(&ring.work_empty[slot.stage], slot.parity ^ 1);
    if (threadIdx.x < groups && number < end) {
      const int group = static_cast<int>(threadIdx.x);
      work.sight[group] = sight_of_group<wanted>(problem, tile, min(rows, tile_rows), group);
    }
    __syncwarp();
    if (threadIdx.x == 0) {
      if (number < end) {
        describe<head_dim, wanted>(work, problem, tile, min(rows, tile_rows),
                                   place_of(number) % heads);
        // From shared memory, as a producer has few registers.
        const Work& previous = ring.work[slot.stage ^ 1];
        work.number = i;
        work.turn_begin = previous.turn_end;
        work.turn_end += previous.turn_end;
        work.rows_parity = previous.rows_parity ^ (previous.turn_begin != previous.turn_end);
      } else {
        work.rows = 0;
      }
      mbarrier_arrive(&ring.work_full[slot.stage]);
    }
    if (number >= end) return;
    mbarrier_wait(&ring.work_asked, i % 2);
    number = take_tile(queue);
  }
}

// Goes through the tiles that the scheduler tells of, until there are no more of the kind.
template <int head_dim, Gradients wanted, class Action>
__device__ __forceinline__ void for_each_tile(Ring<head_dim, wanted>& ring, const Action& act) {
  for (unsigned i = 0;;) {
    const Turn<tiles_known> slot(i);
    mbarrier_wait(&ring.work_full[slot.stage], slot.parity);
    const Work& work = ring.work[slot.stage];
    if (work.rows == 0) return;
    act(work);
    i = work.number + 1;  // not from a register that the tile would have to spare
    release(&ring.work_empty[slot.stage]);
  }
}

// One warp, of which a lane asks for copies. Where a tile of columns is not all the document's, they come to
// the warp that zeroes the rest, which hands them on.
template <int head_dim, Gradients wanted>
__device__ void produce(Storage<head_dim>& shared, const Maps& maps) {
  constexpr int stages = tile_shape(head_dim, wanted).stages;
  auto& tiles = tiles_of<wanted>(shared);
  auto& ring = ring_of<wanted>(shared);
  unsigned tails = 0;
  if constexpr (wanted == Gradients::d_q) mbarrier_wait(&shared.keys_done, 0);
  for_each_tile(ring, [&](const Work& work) {
    if (lane() != 0) return;
    for (WalkOf<head_dim, wanted> walk(work); !walk.is_over(work); walk.advance(work)) {
      const bool is_first = walk.turn == work.turn_begin;
      if (is_first) {
        mbarrier_wait(&ring.rows_empty, work.rows_parity ^ 1);
        load_rows(tiles.first_rows, maps.first_rows, work.row_head, work.row_begin,
                  &ring.first_rows_full);
      }
      const Turn<stages> at(walk.turn);
      std::uint64_t* const tail =
          walk.is_tail(work) ? &ring.tail_full[Turn<stages>(tails++).stage] : nullptr;
      mbarrier_wait(&ring.first_empty[at.stage], at.parity ^ 1);
      load_rows(tiles.first[at.stage], maps.first, walk.head, walk.column,
                tail ? tail : &ring.first_full[at.stage]);
      if (is_first) {  // no sooner than they are needed
        load_rows(tiles.second_rows, maps.second_rows, work.row_head, work.row_begin,
                  &ring.second_rows_full);
      }
      mbarrier_wait(&ring.second_empty[at.stage], at.parity ^ 1);
      load_rows(tiles.second[at.stage], maps.second, walk.head, walk.column,
                tail ? tail : &ring.second_full[at.stage]);
    }
    mbarrier_arrive(&ring.work_asked);
  });
}

// One warp, where columns are queries: their log_sum_exp and D. A head's lie `heads` apart, and begin
// anywhere, so that the copy engine cannot bring them.
template <int head_dim>
__device__ void produce_terms(Storage<head_dim>& shared, const Backward& op) {
  constexpr Gradients wanted = Gradients::d_k_and_d_v;
  constexpr TileShape shape = tile_shape(head_dim, wanted);
  constexpr int own = shape.columns / 32;
  auto& ring = ring_of<wanted>(shared);
  for_each_tile(ring, [&](const Work& work) {
    for (WalkOf<head_dim, wanted> walk(work); !walk.is_over(work); walk.advance(work)) {
      float log2_sum[own], dot[own];
#pragma unroll
      for (int j = 0; j < own; ++j) {
        const int query = walk.column + 32 * j + lane();
        const std::int64_t at = std::int64_t{query} * op.problem.heads + walk.head;
        const bool inside = query < work.document_end;
        log2_sum[j] = inside ? load(op.log_sum_exp + at) * log2_e : 0.0f;
        dot[j] = inside ? load(op.dots + at) : 0.0f;
      }
      const Turn<shape.stages> turn(walk.turn);
      mbarrier_wait(&ring.first_empty[turn.stage], turn.parity ^ 1);
#pragma unroll
      for (int j = 0; j < own; ++j) {
        store_shared(&shared.log2_sum[turn.stage][32 * j + lane()], log2_sum[j]);
        store_shared(&shared.dot[turn.stage][32 * j + lane()], dot[j]);
      }
      mbarrier_arrive(&ring.first_full[turn.stage]);
    }
  });
}

// One warp zeroes the columns that a document does not have.
template <int head_dim, Gradients wanted>
__device__ void zero_tails(Storage<head_dim>& shared) {
  constexpr int stages = tile_shape(head_dim, wanted).stages;
  auto& tiles = tiles_of<wanted>(shared);
  auto& ring = ring_of<wanted>(shared);
  unsigned tails = 0;
  for_each_tile(ring, [&](const Work& work) {
    for (WalkOf<head_dim, wanted> walk(work); !walk.is_over(work); walk.advance(work)) {
      if (!walk.is_tail(work)) continue;
      const Turn<stages> tail(tails++);
      const int stage = Turn<stages>(walk.turn).stage, begin = work.document_end - walk.column;
      mbarrier_wait(&ring.tail_full[tail.stage], tail.parity);
      zero_rows(tiles.first[stage], begin, lane(), 32);
      zero_rows(tiles.second[stage], begin, lane(), 32);
      fence_proxy_async();
      release(&ring.first_full[stage]);
      release(&ring.second_full[stage]);
    }
  });
}

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

template <int head_dim, Gradients wanted>
__device__ void initialise(Ring<head_dim, wanted>& ring) {
  constexpr bool has_terms = wanted == Gradients::d_k_and_d_v;
  constexpr unsigned consumers = groups * warpgroup / 32;
  ring.work[tiles_known - 1] = {};  // previous to the first
  for (int slot = 0; slot < tiles_known; ++slot) {
    mbarrier_init(&ring.work_full[slot], 1);
    mbarrier_init(&ring.work_empty[slot], consumers + 2 + has_terms);
  }
  mbarrier_init(&ring.work_asked, 1);
  mbarrier_init(&ring.first_rows_full, 1);
  mbarrier_init(&ring.second_rows_full, 1);
  mbarrier_init(&ring.rows_empty, consumers);
  for (int stage = 0; stage < ring.stages; ++stage) {
    mbarrier_init(&ring.first_full[stage], has_terms ? 1 + 32 : 1);
    mbarrier_init(&ring.second_full[stage], 1);
    mbarrier_init(&ring.tail_full[stage], 2);
    mbarrier_init(&ring.first_empty[stage], consumers);
    mbarrier_init(&ring.second_empty[stage], consumers);
  }
}

#endif

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
#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
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
#endif
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
