// Attention forward in bf16 on sm_90a (H100, H200), head_dim 64 and 128 (FlashAttention-3, Shah et al.
// 2024).
//
// FLOPs: 4·head_dim per visible query-key pair, in tiles of 128 keys. Bound: the tensor cores, 4096
// FLOPs a clock and SM; at head_dim 64 the exponentials, one a pair and 16 a clock, take as long. q·kᵀ
// reads 96 bytes a clock of shared memory, P·v, with P in registers, 64.
//
// Blocks are persistent, one an SM, and go through tiles of 128 queries of one head, or 192 (tile_queue.h).
// One warp takes a tile as soon as it has asked for all copies of the one before, and asks the copy engine
// for its queries and for tiles of K and V, as far ahead as the ring is long, across the borders of tiles;
// two warpgroups, or three, have 64 queries each, and meet the next tile's copies when they have stored the
// last one's results. A warpgroup starts the scores of a tile and the product of the tile before with its V
// together, and makes probabilities of the scores while that product still runs; the other warpgroups fill
// what is left. Scores are in units of log 2, and are masked only in the tiles that the diagonal or the
// document's end cuts.
//
// Every stage changes hands between the copy engine and all consumers, whoever of them has rows or sees
// keys in it: barriers that counted otherwise for each tile could not outlive it. Who has no use for a
// stage gives it back unread.
#include "kernels/attention/attention_gpu.h"
#include "kernels/attention/softmax.h"
#include "kernels/attention/tile_queue.h"
#include "kernels/attention/wgmma_tiles.h"
#include "kernels/gpu/gpu.h"
#include "kernels/ptx/convert.h"

namespace orchard::GPU_NAMESPACE {
namespace {

constexpr int tile_keys = 128;

struct TileShape {
  int groups;  // consumers, of 64 queries each
  int stages;  // tiles of K, and as many of V
  int producer_registers, consumer_registers;

  constexpr int rows() const { return groups * group_rows; }
  constexpr int threads() const { return (1 + groups) * warpgroup; }
};

// Registers of a consumer thread: the tile's scores take 64, its probabilities, in bf16, 32, the sums of
// out head_dim / 2. The ring holds 128 KB, which is what may be on its way from L2 or HBM.
constexpr TileShape tile_shape(int head_dim) {
  // 128 of 160 registers, which is what three groups may have: beside the products of one, the other
  // two make exponentials, which take as long as products and have other instructions beside them. A
  // tile of K and V serves half as many queries again.
  if (head_dim == 64) return {3, 4, 32, 160};
  // 160 of 232 registers: two groups.
  return {2, 2, 40, 232};
}

struct Forward {
  Problem problem;
  bf16* out;
  float* log_sum_exp;
  float log2_scale;
};

// What a block does with a tile of queries.
struct Work {
  DocumentTile tile;
  int rows = 0;  // that the document has of the tile; 0: there are no more tiles
  int head;
  int tiles;      // of keys that any of the rows sees
  int early;      // so many groups, the first, without the last tile
  unsigned turn;  // of the ring, that the first tile of keys has
};

// Tiles of queries that the producer has told of: the one at hand and the next.
constexpr int tiles_known = 2;

template <int head_dim>
struct Storage {
  static constexpr int stages = tile_shape(head_dim).stages;
  WgmmaRows<head_dim, tile_shape(head_dim).rows()> q[tiles_known];
  WgmmaRows<head_dim, tile_keys> k[stages], v[stages];
  Work work[tiles_known];  // with q
  std::uint64_t q_full[tiles_known], q_empty[tiles_known];
  std::uint64_t k_full[stages], v_full[stages], k_empty[stages], v_empty[stages];
  // Of V, for the warp that zeroes what lies behind a document's last key; one after the other.
  std::uint64_t tail_full[stages];
};
static_assert(sizeof(Storage<64>) <= 227 * 1024 && sizeof(Storage<128>) <= 227 * 1024);

__device__ inline void release(std::uint64_t* empty) {
  if (threadIdx.x % 32 == 0) mbarrier_arrive(empty);
}

template <int head_dim>
__device__ Work work_of(const Problem& problem, const DocumentTile& tile, int rows, int head) {
  constexpr TileShape shape = tile_shape(head_dim);
  const Document& document = tile.document;
  const std::int64_t seen = document.visible_keys(problem.mask, tile.first + rows - 1);
  const int tiles = (static_cast<int>(seen) + tile_keys - 1) / tile_keys;
  Work work{.tile = tile, .rows = rows, .head = head, .tiles = tiles, .early = 0};
  // Two groups share the tile that the diagonal cuts. Of three some see one tile less. A first tile is
  // everybody's: who sees nothing of it has zeros to store.
  if constexpr (shape.groups > 2) {
    static_assert(shape.rows() - group_rows <= tile_keys, "of the last tile alone");
    const std::int64_t first = document.first_query(problem.mask, (tiles - 1) * tile_keys);
    if (tiles > 1 && first > tile.first) {
      work.early = (static_cast<int>(first) - tile.first) / group_rows;
    }
  }
  return work;
}

// The next tile that has rows, if there is one. By a whole warp.
template <int head_dim>
__device__ Work next_work(const Problem& problem, const TileQueue& queue) {
  constexpr int tile_rows = tile_shape(head_dim).rows();
  for (;;) {
    const unsigned number = take_tile(queue);
    if (number >= queue.tiles) return {};
    // From the last tile to the first: under a causal mask the last have the most keys.
    const int head = static_cast<int>(number) % problem.heads;
    const int slot = static_cast<int>(queue.tiles - 1 - number) / problem.heads;
    const DocumentTile tile = find_tile(problem.packing, Axis::queries, tile_rows, slot);
    const int rows = min(tile.document.queries - tile.first, tile_rows);
    if (rows > 0) return work_of<head_dim>(problem, tile, rows, head);
  }
}

// Rows of the last tile of V that the document has.
__device__ inline int last_keys(const Work& work) {
  return work.tile.document.keys - (work.tiles - 1) * tile_keys;
}
__device__ inline bool has_tail(const Work& work) {
  return work.tiles > 0 && last_keys(work) < tile_keys;
}

// One warp; one of its lanes asks for copies.
template <int head_dim>
__device__ void produce(Storage<head_dim>& shared, const TensorMap& q, const TensorMap& k,
                        const TensorMap& v, const Problem& problem, const TileQueue& queue) {
  constexpr int stages = tile_shape(head_dim).stages;
  unsigned turn = 0, tails = 0;
  for (unsigned i = 0;; ++i) {
    Work work = next_work<head_dim>(problem, queue);
    work.turn = turn;
    const bool tail = has_tail(work);
    if (threadIdx.x == 0) {
      const Document& document = work.tile.document;
      const Turn<tiles_known> slot(i);
      mbarrier_wait(&shared.q_empty[slot.stage], slot.parity ^ 1);
      std::uint64_t* const full = &shared.q_full[slot.stage];
      shared.work[slot.stage] = work;
      if (work.tiles > 0) {
        load_rows(shared.q[slot.stage], q, work.head, document.query_begin + work.tile.first, full);
      } else {
        mbarrier_arrive(full);
      }
      const int kv_head = work.head / (problem.heads / problem.kv_heads);
      for (int tile = 0; tile < work.tiles; ++tile) {
        const Turn<stages> at(turn + static_cast<unsigned>(tile));
        const int row = document.key_begin + tile * tile_keys;
        mbarrier_wait(&shared.k_empty[at.stage], at.parity ^ 1);
        load_rows(shared.k[at.stage], k, kv_head, row, &shared.k_full[at.stage]);
        mbarrier_wait(&shared.v_empty[at.stage], at.parity ^ 1);
        load_rows(shared.v[at.stage], v, kv_head, row,
                  tail && tile == work.tiles - 1 ? &shared.tail_full[Turn<stages>(tails).stage]
                                                 : &shared.v_full[at.stage]);
      }
    }
    if (work.rows == 0) return;
    turn += static_cast<unsigned>(work.tiles);
    tails += tail;
  }
}

// One warp gets the last tile of V, which the consumers need last, before they do, and zeroes the rows behind
// the document's last key.
template <int head_dim>
__device__ void zero_tails(Storage<head_dim>& shared) {
  constexpr int stages = tile_shape(head_dim).stages;
  unsigned tails = 0;
  for (unsigned i = 0;; ++i) {
    const Turn<tiles_known> slot(i);
    mbarrier_wait(&shared.q_full[slot.stage], slot.parity);
    const Work& work = shared.work[slot.stage];
    if (work.rows == 0) return;
    if (has_tail(work)) {
      const Turn<stages> tail(tails++);
      const int stage = Turn<stages>(work.turn + static_cast<unsigned>(work.tiles) - 1).stage;
      mbarrier_wait(&shared.tail_full[tail.stage], tail.parity);
      zero_rows(shared.v[stage], last_keys(work), static_cast<int>(threadIdx.x) % 32, 32);
      fence_proxy_async();
      __syncwarp();
      release(&shared.v_full[stage]);
    }
    __syncwarp();
    release(&shared.q_empty[slot.stage]);
  }
}

// A warpgroup: its 64 rows of a tile. What is not needed for every tile of keys is read from `work` where
// it is: the loop wants the registers.
template <int head_dim>
__device__ void consume_tile(Storage<head_dim>& shared, const Forward& op, int slot) {
  constexpr TileShape shape = tile_shape(head_dim);
  using KeyTurn = Turn<shape.stages>;
  const Problem& problem = op.problem;
  const Work& work = shared.work[slot];
  const int own_row = (warp() / (warpgroup / 32) - 1) * group_rows;
  const int lane_row =
      static_cast<int>(threadIdx.x - warpgroup) / 32 * 16 + lane() / 4;  // and 8 further
  const int lane_column = lane() % 4 * 2;                                // and the next, of every 8

  MmaSums<1, tile_keys / 8> scores;
  MmaSums<1, head_dim / 8> out;
  RunningRows<1> running;
  unsigned probabilities[tile_keys / 16][4];
  auto& flat_scores = reinterpret_cast<float(&)[tile_keys / 2]>(scores);
  auto& flat_out = reinterpret_cast<float(&)[head_dim / 2]>(out);
#pragma unroll
  for (float& sum : flat_out) sum = 0.0f;
  running.clear();

  const auto start_scores = [&](int stage) {
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < head_dim / 16; ++step) {
      wgmma_m64k16<Transposed::no, Transposed::no>(flat_scores,
                                                   columns_of(shared.q[slot], own_row, step),
                                                   columns_of(shared.k[stage], 0, step), step > 0);
    }
    wgmma_commit();
  };
  const auto start_sums = [&](int stage) {
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < tile_keys / 16; ++step) {
      wgmma_m64k16<Transposed::yes>(flat_out, probabilities[step], rows_of(shared.v[stage], step),
                                    true);
    }
    wgmma_commit();
  };
  const auto round_scores = [&] {
#pragma unroll
    for (int step = 0; step < tile_keys / 16; ++step) {
      round_sums(flat_scores, step, probabilities[step]);
    }
  };

  unsigned turn = work.turn;
  unsigned end = turn + static_cast<unsigned>(work.tiles);
  if constexpr (shape.groups > 2) {
    if (own_row < work.early * group_rows) --end;
    if (own_row >= work.rows) end = turn;
  }
  if (turn != end) {
    // Before this tile every row of the group sees all keys.
    const int first_row = work.tile.first + min(own_row, work.rows - 1);
    const std::int64_t keys_of_all = work.tile.document.visible_keys(problem.mask, first_row);
    const unsigned whole_until = turn + static_cast<unsigned>(keys_of_all) / tile_keys;
    const auto mask = [&] {
      if (static_cast<int>(turn - whole_until) < 0) return;
      const Document& document = work.tile.document;
      const int keys = document.keys - static_cast<int>(turn - work.turn) * tile_keys;
      const int seen = work.tile.first + lane_row + 1 + keys - document.queries;
      mask_scores<1, tile_keys / 8>(scores, problem.mask, seen, keys);
    };
    float shrink[1][2];
    const KeyTurn first(turn);
    mbarrier_wait(&shared.k_full[first.stage], first.parity);
    start_scores(first.stage);
    wgmma_wait<0>();
    release(&shared.k_empty[first.stage]);
    mask();
    online_softmax<1, tile_keys / 8>(scores, op.log2_scale, running, shrink);
    round_scores();
    for (++turn; turn != end; ++turn) {
      const KeyTurn at(turn), before(turn - 1);
      mbarrier_wait(&shared.k_full[at.stage], at.parity);
      start_scores(at.stage);
      mbarrier_wait(&shared.v_full[before.stage], before.parity);
      start_sums(before.stage);
      wgmma_wait<1>();
      release(&shared.k_empty[at.stage]);
      mask();
      online_softmax<1, tile_keys / 8>(scores, op.log2_scale, running, shrink);
      wgmma_wait<0>();
      release(&shared.v_empty[before.stage]);
      rescale<1, head_dim / 8>(out, shrink);
      round_scores();
    }
    const KeyTurn last(turn - 1);
    mbarrier_wait(&shared.v_full[last.stage], last.parity);
    start_sums(last.stage);
    wgmma_wait<0>();
    release(&shared.v_empty[last.stage]);
  }
  if constexpr (shape.groups > 2) {
    for (; turn != work.turn + static_cast<unsigned>(work.tiles); ++turn) {
      const KeyTurn at(turn);
      mbarrier_wait(&shared.k_full[at.stage], at.parity);
      mbarrier_wait(&shared.v_full[at.stage], at.parity);
      __syncwarp();
      release(&shared.k_empty[at.stage]);
      release(&shared.v_empty[at.stage]);
    }
  }

  // Rows that see no key have sums of zero and -inf.
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const RowTotal total = total_of(running, 0, half, op.log2_scale);
    const int r = lane_row + 8 * half;
    if (r >= work.rows) continue;
    const std::int64_t at =
        std::int64_t{work.tile.document.query_begin + work.tile.first + r} * problem.heads +
        work.head;
    if (lane_column == 0) store(op.log_sum_exp + at, total.log_sum_exp);
#pragma unroll
    for (int j = 0; j < head_dim / 8; ++j) {
      store(reinterpret_cast<unsigned*>(op.out + at * head_dim + 8 * j + lane_column),
            pack_bf16x2(out[0][j][2 * half] * total.inverse,
                        out[0][j][2 * half + 1] * total.inverse));
    }
  }
}

template <int head_dim>
__device__ void consume(Storage<head_dim>& shared, const Forward& op) {
  for (unsigned i = 0;; ++i) {
    const Turn<tiles_known> slot(i);
    mbarrier_wait(&shared.q_full[slot.stage], slot.parity);
    if (shared.work[slot.stage].rows == 0) return;
    consume_tile(shared, op, slot.stage);
    __syncwarp();
    release(&shared.q_empty[slot.stage]);
  }
}

template <int head_dim>
__global__ void __launch_bounds__(tile_shape(head_dim).threads(), 1)
    attention_forward_wgmma(const __grid_constant__ TensorMap q,
                            const __grid_constant__ TensorMap k,
                            const __grid_constant__ TensorMap v, Forward op, TileQueue queue) {
  constexpr TileShape shape = tile_shape(head_dim);
  auto& shared = shared_storage<Storage<head_dim>>();
  if (threadIdx.x == 0) {
    constexpr unsigned consumers = shape.groups * warpgroup / 32;
    for (int slot = 0; slot < tiles_known; ++slot) {
      mbarrier_init(&shared.q_full[slot], 1);
      mbarrier_init(&shared.q_empty[slot], consumers + 1);  // and the warp that zeroes
    }
    for (int stage = 0; stage < shape.stages; ++stage) {
      mbarrier_init(&shared.k_full[stage], 1);
      mbarrier_init(&shared.v_full[stage], 1);
      mbarrier_init(&shared.tail_full[stage], 1);
      mbarrier_init(&shared.k_empty[stage], consumers);
      mbarrier_init(&shared.v_empty[stage], consumers);
    }
    mbarrier_fence_init();
  }
  __syncthreads();
  if (threadIdx.x < warpgroup) {
    shrink_registers<shape.producer_registers>();
    const int warp = static_cast<int>(threadIdx.x) / 32;
    if (warp == 0) produce(shared, q, k, v, op.problem, queue);
    if (warp == 1) zero_tails(shared);
  } else {
    grow_registers<shape.consumer_registers>();
    consume(shared, op);
  }
}

template <int head_dim>
void launch_forward(Stream& stream, const AttentionForward& op) {
  constexpr TileShape shape = tile_shape(head_dim);
  const Forward forward{.problem = problem_of("AttentionForward", op),
                        .out = op.out.data<bf16>(),
                        .log_sum_exp = op.log_sum_exp.data<float>(),
                        .log2_scale = op.scale * log2_e};
  const TileQueue queue = tile_queue(
      "AttentionForward", stream,
      slots(forward.problem.packing, Axis::queries, shape.rows()) * forward.problem.heads);
  if (queue.tiles == 0) return;
  launch(stream,
         {.kernel = "attention_forward_wgmma",
          .grid = {queue.blocks},
          .block = {shape.threads()},
          .shared_bytes = sizeof(Storage<head_dim>)},
         attention_forward_wgmma<head_dim>, tensor_map(op.q, shape.rows()),
         tensor_map(op.k, tile_keys), tensor_map(op.v, tile_keys), forward, queue);
}

}  // namespace

void attention_forward_wgmma(Stream& stream, const AttentionForward& op) {
  (op.q.dim(2) == 64 ? launch_forward<64> : launch_forward<128>)(stream, op);
}

}  // namespace orchard::GPU_NAMESPACE
