// Attention forward in bf16 on sm_90a (H100, H200), head_dim 64 and 128 (FlashAttention-3, Shah et al.
// 2024).
//
// FLOPs: 4·head_dim per visible query-key pair, in tiles of 128 keys. Bound: the tensor cores, 4096
// FLOPs a clock and SM; at head_dim 64 the exponentials, one a pair and 16 a clock, take as long. q·kᵀ
// reads 96 bytes a clock of shared memory, P·v, with P in registers, 64.
//
// A block takes 128 queries of one head, or 192. One thread asks the copy engine for tiles of K and V,
// as far ahead as the ring is long; two warpgroups, or three, take 64 queries each. A warpgroup starts
// the scores of a tile and the product of the tile before with its V together, and makes probabilities
// of the scores while that product still runs; the other warpgroups fill what is left. Scores are in
// units of log 2, and are masked only in the tiles that the diagonal or the document's end cuts.
#include "kernels/attention/attention_gpu.h"
#include "kernels/attention/softmax.h"
#include "kernels/attention/wgmma_tiles.h"
#include "kernels/gpu/gpu.h"
#include "kernels/gpu/gpu_properties.h"

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

template <int head_dim>
struct Storage {
  static constexpr int stages = tile_shape(head_dim).stages;
  WgmmaRows<head_dim, tile_shape(head_dim).rows()> q;
  WgmmaRows<head_dim, tile_keys> k[stages], v[stages];
  std::uint64_t q_full, k_full[stages], v_full[stages], k_empty[stages], v_empty[stages];
  std::uint64_t tail_zeroed;
};
static_assert(sizeof(Storage<64>) <= 227 * 1024 && sizeof(Storage<128>) <= 227 * 1024);

#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

// What a block does.
struct Work {
  DocumentTile tile;
  int rows;  // that the document has of the tile
  int head;
  int tiles;   // of keys that any of the rows sees
  int groups;  // that multiply
  int early;   // so many of them, the first, without the last tile
};

template <int head_dim>
__device__ Work work_of(const Problem& problem, const DocumentTile& tile, int rows, int head) {
  constexpr TileShape shape = tile_shape(head_dim);
  const Document& document = tile.document;
  const std::int64_t seen = document.visible_keys(problem.mask, tile.first + rows - 1);
  const int tiles = (static_cast<int>(seen) + tile_keys - 1) / tile_keys;
  Work work{
      .tile = tile, .rows = rows, .head = head, .tiles = tiles, .groups = shape.groups, .early = 0};
  // Two groups share the tile that the diagonal cuts. Of three some see one tile less: not two, so that
  // the ring needs no release that it would not get. A first tile is everybody's: who sees nothing of it
  // has zeros to store.
  if constexpr (shape.groups > 2) {
    static_assert(shape.rows() - group_rows <= tile_keys && shape.stages >= 2);
    work.groups = (rows + group_rows - 1) / group_rows;
    const std::int64_t first = document.first_query(problem.mask, (tiles - 1) * tile_keys);
    if (tiles > 1 && first > tile.first) {
      work.early = (static_cast<int>(first) - tile.first) / group_rows;
    }
  }
  return work;
}

template <int head_dim>
__device__ void produce(Storage<head_dim>& shared, const TensorMap& q, const TensorMap& k,
                        const TensorMap& v, const Work& work, int kv_head) {
  constexpr int stages = tile_shape(head_dim).stages;
  const DocumentTile& tile = work.tile;
  load_rows(shared.q, q, work.head, tile.document.query_begin + tile.first, &shared.q_full);
  for (int i = 0; i < work.tiles; ++i) {
    const Turn<stages> turn(i);
    const int row = tile.document.key_begin + i * tile_keys;
    mbarrier_wait(&shared.k_empty[turn.stage], turn.parity ^ 1);
    load_rows(shared.k[turn.stage], k, kv_head, row, &shared.k_full[turn.stage]);
    mbarrier_wait(&shared.v_empty[turn.stage], turn.parity ^ 1);
    load_rows(shared.v[turn.stage], v, kv_head, row, &shared.v_full[turn.stage]);
  }
}

// Of the groups that see the last tile.
__device__ inline unsigned last_threads(const Work& work) {
  return static_cast<unsigned>((work.groups - work.early) * warpgroup);
}

// What lies behind the document's last key. By all threads that read it.
template <int head_dim>
__device__ void zero_tail(Storage<head_dim>& shared, WgmmaRows<head_dim, tile_keys>& v, int keys,
                          const Work& work) {
  const int thread = static_cast<int>(threadIdx.x) - (1 + work.early) * warpgroup;
  zero_rows(v, keys, thread, static_cast<int>(last_threads(work)));
  fence_proxy_async();
  mbarrier_arrive(&shared.tail_zeroed);
  mbarrier_wait(&shared.tail_zeroed, 0);
}

template <int head_dim>
__device__ void consume(Storage<head_dim>& shared, const Forward& op, const Work& work) {
  constexpr TileShape shape = tile_shape(head_dim);
  const Problem& problem = op.problem;
  const DocumentTile& tile = work.tile;
  const Document& document = tile.document;
  const int group = static_cast<int>(threadIdx.x) / warpgroup - 1;
  int tiles = work.tiles;
  if constexpr (shape.groups > 2) {
    if (group >= work.groups) return;
    if (group < work.early) --tiles;
  }
  const int row = group * group_rows + static_cast<int>(threadIdx.x) % warpgroup / 32 * 16;
  const int lane_row = row + lane() / 4;  // and 8 further
  // Before this tile every row of the group sees all keys.
  const int first_row = tile.first + min(group * group_rows, work.rows - 1);
  const int whole = static_cast<int>(document.visible_keys(problem.mask, first_row)) / tile_keys;
  const int seen = tile.first + lane_row + 1 + document.keys - document.queries;
  const auto release = [](std::uint64_t* empty) {
    if (threadIdx.x % 32 == 0) mbarrier_arrive(empty);
  };

  MmaSums<1, tile_keys / 8> scores;
  MmaSums<1, head_dim / 8> out;
  RunningRows<1> running;
  unsigned probabilities[tile_keys / 16][4];
  auto& flat_scores = reinterpret_cast<float(&)[tile_keys / 2]>(scores);
  auto& flat_out = reinterpret_cast<float(&)[head_dim / 2]>(out);
#pragma unroll
  for (float& sum : flat_out) sum = 0.0f;
  running.clear();

  const auto start_scores = [&](int i) {
    const auto& k = shared.k[Turn<shape.stages>(i).stage];
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < head_dim / 16; ++step) {
      wgmma_m64k16<Transposed::no, Transposed::no>(flat_scores,
                                                   columns_of(shared.q, group * group_rows, step),
                                                   columns_of(k, 0, step), step > 0);
    }
    wgmma_commit();
  };
  const auto start_sums = [&](int i) {
    const auto& v = shared.v[Turn<shape.stages>(i).stage];
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < tile_keys / 16; ++step) {
      wgmma_m64k16<Transposed::yes>(flat_out, probabilities[step], rows_of(v, step), true);
    }
    wgmma_commit();
  };
  const auto mask = [&](int i) {
    if (i < whole) return;
    const int key = i * tile_keys;
    mask_scores<1, tile_keys / 8>(scores, problem.mask, seen - key, document.keys - key);
  };
  const auto round_scores = [&] {
#pragma unroll
    for (int step = 0; step < tile_keys / 16; ++step) {
      round_sums(flat_scores, step, probabilities[step]);
    }
  };

  mbarrier_wait(&shared.q_full, 0);
  mbarrier_wait(&shared.k_full[0], 0);
  start_scores(0);
  wgmma_wait<0>();
  release(&shared.k_empty[0]);
  mask(0);
  float shrink[1][2];
  online_softmax<1, tile_keys / 8>(scores, op.log2_scale, running, shrink);
  round_scores();
  for (int i = 1; i < tiles; ++i) {
    const Turn<shape.stages> turn(i), before(i - 1);
    mbarrier_wait(&shared.k_full[turn.stage], turn.parity);
    start_scores(i);
    mbarrier_wait(&shared.v_full[before.stage], before.parity);
    start_sums(i - 1);
    wgmma_wait<1>();
    release(&shared.k_empty[turn.stage]);
    mask(i);
    online_softmax<1, tile_keys / 8>(scores, op.log2_scale, running, shrink);
    wgmma_wait<0>();
    release(&shared.v_empty[before.stage]);
    rescale<1, head_dim / 8>(out, shrink);
    round_scores();
  }
  const Turn<shape.stages> last(tiles - 1);
  mbarrier_wait(&shared.v_full[last.stage], last.parity);
  const int keys = document.keys - (tiles - 1) * tile_keys;
  if (keys < tile_keys) zero_tail(shared, shared.v[last.stage], keys, work);
  start_sums(tiles - 1);
  wgmma_wait<0>();

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const RowTotal total = total_of(running, 0, half, op.log2_scale);
    const int r = lane_row + 8 * half;
    if (r >= work.rows) continue;
    const std::int64_t at =
        std::int64_t{document.query_begin + tile.first + r} * problem.heads + work.head;
    if (lane() % 4 == 0) store(op.log_sum_exp + at, total.log_sum_exp);
#pragma unroll
    for (int j = 0; j < head_dim / 8; ++j) {
      store(reinterpret_cast<unsigned*>(op.out + at * head_dim + 8 * j + lane() % 4 * 2),
            pack_bf16x2(out[0][j][2 * half] * total.inverse,
                        out[0][j][2 * half + 1] * total.inverse));
    }
  }
}

// Rows that see no key.
template <int head_dim>
__device__ void store_nothing(const Forward& op, const Work& work) {
  constexpr int units = head_dim * sizeof(bf16) / sizeof(uint4);
  constexpr int threads = tile_shape(head_dim).threads();
  for (int i = static_cast<int>(threadIdx.x); i < work.rows * units; i += threads) {
    const std::int64_t row = work.tile.document.query_begin + work.tile.first + i / units;
    const std::int64_t at = row * op.problem.heads + work.head;
    store(reinterpret_cast<uint4*>(op.out + at * head_dim) + i % units, {0, 0, 0, 0});
    if (i % units == 0) store(op.log_sum_exp + at, -infinity);
  }
}

#endif

template <int head_dim>
__global__ void __launch_bounds__(tile_shape(head_dim).threads(), 1)
    attention_forward_wgmma(const __grid_constant__ TensorMap q,
                            const __grid_constant__ TensorMap k,
                            const __grid_constant__ TensorMap v, Forward op) {
#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  constexpr TileShape shape = tile_shape(head_dim);
  const Problem& problem = op.problem;
  const int head = static_cast<int>(blockIdx.x) % problem.heads;
  // From the last tile to the first: under a causal mask the last have the most keys.
  const int slot = static_cast<int>(gridDim.x - 1 - blockIdx.x) / problem.heads;
  const DocumentTile tile = find_tile(problem.packing, Axis::queries, shape.rows(), slot);
  const int rows = min(tile.document.queries - tile.first, shape.rows());
  if (rows <= 0) return;
  const Work work = work_of<head_dim>(problem, tile, rows, head);
  if (work.tiles == 0) return store_nothing<head_dim>(op, work);

  auto& shared = shared_storage<Storage<head_dim>>();
  if (threadIdx.x == 0) {
    const auto consumers = static_cast<unsigned>(work.groups * warpgroup / 32);
    mbarrier_init(&shared.q_full, 1);
    mbarrier_init(&shared.tail_zeroed, last_threads(work));
    for (int stage = 0; stage < shape.stages; ++stage) {
      mbarrier_init(&shared.k_full[stage], 1);
      mbarrier_init(&shared.v_full[stage], 1);
      mbarrier_init(&shared.k_empty[stage], consumers);
      mbarrier_init(&shared.v_empty[stage], consumers);
    }
    mbarrier_fence_init();
  }
  __syncthreads();
  if (threadIdx.x < warpgroup) {
    shrink_registers<shape.producer_registers>();
    const int kv_head = head / (problem.heads / problem.kv_heads);
    if (threadIdx.x == 0) produce(shared, q, k, v, work, kv_head);
  } else {
    grow_registers<shape.consumer_registers>();
    consume(shared, op, work);
  }
#endif
}

template <int head_dim>
void launch_forward(Stream& stream, const AttentionForward& op) {
  constexpr TileShape shape = tile_shape(head_dim);
  const Forward forward{.problem = problem_of("AttentionForward", op),
                        .out = op.out.data<bf16>(),
                        .log_sum_exp = op.log_sum_exp.data<float>(),
                        .log2_scale = op.scale * log2_e};
  const Extent3 grid =
      grid_of("AttentionForward", slots(forward.problem.packing, Axis::queries, shape.rows()),
              forward.problem.heads);
  if (grid.x == 0) return;
  launch(stream,
         {.kernel = "attention_forward_wgmma",
          .grid = grid,
          .block = {shape.threads()},
          .shared_bytes = sizeof(Storage<head_dim>)},
         attention_forward_wgmma<head_dim>, tensor_map(op.q, shape.rows()),
         tensor_map(op.k, tile_keys), tensor_map(op.v, tile_keys), forward);
}

}  // namespace

void attention_forward_wgmma(Stream& stream, const AttentionForward& op) {
  (op.q.dim(2) == 64 ? launch_forward<64> : launch_forward<128>)(stream, op);
}

}  // namespace orchard::GPU_NAMESPACE
