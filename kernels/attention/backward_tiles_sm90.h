// How the tiles of attention's backward on sm_90a come to the warpgroups that multiply them
// (attention_backward_sm90.cu): what lies in shared memory, and the four warps that fill it.
//
// Tiles of keys, for d_k and d_v, come first, as they are longer, and then those of queries: a block changes
// kind once at most. The kinds have rings of their own, as different barriers count different arrivals, in
// the same shared memory, which changes hands when the consumers have done their last tile of keys.
#pragma once

#include "kernels/attention/attention_backward.h"
#include "kernels/attention/tile_queue.h"
#include "kernels/attention/wgmma_tiles.h"
#include "kernels/gpu/gpu.h"

namespace orchard::GPU_NAMESPACE::backward_tiles {

inline constexpr int groups = 2;
inline constexpr int tile_rows = groups * group_rows;
inline constexpr int threads = (1 + groups) * warpgroup;  // producers and two consumers

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
inline constexpr int tiles_known = 2;

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

// What a group's rows see, as `describe` wants it: nothing where it has none.
template <Gradients wanted>
__device__ void describe_sight(Sight& to, const Problem& problem, const DocumentTile& tile,
                               int rows, int group) {
  const int begin = group * group_rows, end = min(begin + group_rows, rows);
  Sight sight{0, 0, 0, 0};
  if (begin < end) {
    sight = sight_of<wanted>(tile.document, problem.mask, tile.first + begin, tile.first + end);
  }
  to.any_begin = sight.any_begin;
  to.all_begin = sight.all_begin;
  to.all_end = sight.all_end;
  to.any_end = sight.any_end;
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
      describe_sight<wanted>(work.sight[group], problem, tile, min(rows, tile_rows), group);
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

}  // namespace orchard::GPU_NAMESPACE::backward_tiles
