// Attention forward in bf16 on sm_90a (H100, H200), head_dim 128 (FlashAttention-3, Shah et al. 2024).
//
// FLOPs: 4·head_dim per visible query-key pair, in tiles of 128 keys. Bound: the tensor cores, 4096
// FLOPs a clock and SM; q·kᵀ reads 96 bytes a clock of shared memory, P·v, with P in registers, 64.
//
// A block takes 128 queries of one head. One thread asks the copy engine for tiles of K and V, two of
// each ahead; two warpgroups take 64 queries each. A warpgroup starts the scores of a tile and the
// product of the tile before with its V together, and makes probabilities of the scores while that
// product still runs; the other warpgroup fills what is left. Scores are in units of log 2, and are
// masked only in the tiles that the diagonal or the document's end cuts.
#include "kernels/attention/attention_gpu.h"
#include "kernels/attention/softmax.h"
#include "kernels/attention/wgmma_tiles.h"
#include "kernels/gpu/gpu.h"
#include "kernels/gpu/gpu_properties.h"

namespace orchard::GPU_NAMESPACE {
namespace {

constexpr int head_dim = 128;
constexpr int groups = 2;
constexpr int tile_rows = groups * group_rows;
constexpr int tile_keys = 128;
constexpr int stages = 2;
constexpr int threads = (1 + groups) * warpgroup;  // a producer and two consumers

struct Forward {
  Problem problem;
  bf16* out;
  float* log_sum_exp;
  float log2_scale;
};

struct Storage {
  WgmmaRows<head_dim, tile_rows> q;
  WgmmaRows<head_dim, tile_keys> k[stages], v[stages];
  std::uint64_t q_full, k_full[stages], v_full[stages], k_empty[stages], v_empty[stages];
  std::uint64_t tail_zeroed;
};
static_assert(sizeof(Storage) <= 227 * 1024);

#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr int steps = head_dim / 16;  // of a product; as many in keys
static_assert(head_dim == tile_keys);

__device__ void produce(Storage& shared, const TensorMap& q, const TensorMap& k, const TensorMap& v,
                        const DocumentTile& tile, int head, int kv_head, int tiles) {
  load_rows(shared.q, q, head, tile.document.query_begin + tile.first, &shared.q_full);
  for (int i = 0; i < tiles; ++i) {
    const Turn<stages> turn(i);
    const int row = tile.document.key_begin + i * tile_keys;
    mbarrier_wait(&shared.k_empty[turn.stage], turn.parity ^ 1);
    load_rows(shared.k[turn.stage], k, kv_head, row, &shared.k_full[turn.stage]);
    mbarrier_wait(&shared.v_empty[turn.stage], turn.parity ^ 1);
    load_rows(shared.v[turn.stage], v, kv_head, row, &shared.v_full[turn.stage]);
  }
}

// What lies behind the document's last key.
__device__ void zero_tail(Storage& shared, WgmmaRows<head_dim, tile_keys>& v, int keys) {
  const int thread = static_cast<int>(threadIdx.x) - warpgroup;
  zero_rows(v, keys, thread, groups * warpgroup);
  fence_proxy_async();
  mbarrier_arrive(&shared.tail_zeroed);
  mbarrier_wait(&shared.tail_zeroed, 0);
}

__device__ void consume(Storage& shared, const Forward& op, const DocumentTile& tile, int rows,
                        int head, int tiles) {
  const Problem& problem = op.problem;
  const Document& document = tile.document;
  const int group = static_cast<int>(threadIdx.x) / warpgroup - 1;
  const int row = group * group_rows + static_cast<int>(threadIdx.x) % warpgroup / 32 * 16;
  const int lane_row = row + lane() / 4;  // and 8 further
  // Before this tile every row of the group sees all keys.
  const int first_row = tile.first + min(group * group_rows, rows - 1);
  const int whole = static_cast<int>(document.visible_keys(problem.mask, first_row)) / tile_keys;
  const int seen = tile.first + lane_row + 1 + document.keys - document.queries;
  const auto release = [](std::uint64_t* empty) {
    if (threadIdx.x % 32 == 0) mbarrier_arrive(empty);
  };

  MmaSums<1, tile_keys / 8> scores;
  MmaSums<1, head_dim / 8> out;
  RunningRows<1> running;
  unsigned probabilities[steps][4];
  auto& flat_scores = reinterpret_cast<float(&)[64]>(scores);
  auto& flat_out = reinterpret_cast<float(&)[64]>(out);
#pragma unroll
  for (float& sum : flat_out) sum = 0.0f;
  running.clear();

  const auto start_scores = [&](int i) {
    const auto& k = shared.k[Turn<stages>(i).stage];
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < steps; ++step) {
      wgmma_m64k16<Transposed::no, Transposed::no>(flat_scores,
                                                   columns_of(shared.q, group * group_rows, step),
                                                   columns_of(k, 0, step), step > 0);
    }
    wgmma_commit();
  };
  const auto start_sums = [&](int i) {
    const auto& v = shared.v[Turn<stages>(i).stage];
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < steps; ++step) {
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
    for (int step = 0; step < steps; ++step) {
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
    const Turn<stages> turn(i), before(i - 1);
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
  const Turn<stages> last(tiles - 1);
  mbarrier_wait(&shared.v_full[last.stage], last.parity);
  const int keys = document.keys - (tiles - 1) * tile_keys;
  if (keys < tile_keys) zero_tail(shared, shared.v[last.stage], keys);
  start_sums(tiles - 1);
  wgmma_wait<0>();

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const RowTotal total = total_of(running, 0, half, op.log2_scale);
    const int r = lane_row + 8 * half;
    if (r >= rows) continue;
    const std::int64_t at =
        std::int64_t{document.query_begin + tile.first + r} * problem.heads + head;
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
__device__ void store_nothing(const Forward& op, const DocumentTile& tile, int rows, int head) {
  constexpr int units = head_dim * sizeof(bf16) / sizeof(uint4);
  for (int i = static_cast<int>(threadIdx.x); i < rows * units; i += threads) {
    const std::int64_t row = tile.document.query_begin + tile.first + i / units;
    const std::int64_t at = row * op.problem.heads + head;
    store(reinterpret_cast<uint4*>(op.out + at * head_dim) + i % units, {0, 0, 0, 0});
    if (i % units == 0) store(op.log_sum_exp + at, -infinity);
  }
}

#endif

__global__ void __launch_bounds__(threads, 1)
    attention_forward_wgmma_128(const __grid_constant__ TensorMap q,
                                const __grid_constant__ TensorMap k,
                                const __grid_constant__ TensorMap v, Forward op) {
#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  const Problem& problem = op.problem;
  const int head = static_cast<int>(blockIdx.x) % problem.heads;
  // From the last tile to the first: under a causal mask the last have the most keys.
  const int slot = static_cast<int>(gridDim.x - 1 - blockIdx.x) / problem.heads;
  const DocumentTile tile = find_tile(problem.packing, Axis::queries, tile_rows, slot);
  const int rows = min(tile.document.queries - tile.first, tile_rows);
  if (rows <= 0) return;
  const std::int64_t seen = tile.document.visible_keys(problem.mask, tile.first + rows - 1);
  const int tiles = (static_cast<int>(seen) + tile_keys - 1) / tile_keys;
  if (tiles == 0) return store_nothing(op, tile, rows, head);

  auto& shared = shared_storage<Storage>();
  if (threadIdx.x == 0) {
    mbarrier_init(&shared.q_full, 1);
    mbarrier_init(&shared.tail_zeroed, groups * warpgroup);
    for (int stage = 0; stage < stages; ++stage) {
      mbarrier_init(&shared.k_full[stage], 1);
      mbarrier_init(&shared.v_full[stage], 1);
      mbarrier_init(&shared.k_empty[stage], groups * warpgroup / 32);
      mbarrier_init(&shared.v_empty[stage], groups * warpgroup / 32);
    }
    mbarrier_fence_init();
  }
  __syncthreads();
  if (threadIdx.x < warpgroup) {
    shrink_registers<40>();
    const int kv_head = head / (problem.heads / problem.kv_heads);
    if (threadIdx.x == 0) produce(shared, q, k, v, tile, head, kv_head, tiles);
  } else {
    grow_registers<232>();
    consume(shared, op, tile, rows, head, tiles);
  }
#endif
}

}  // namespace

void attention_forward_wgmma(Stream& stream, const AttentionForward& op) {
  const Forward forward{.problem = problem_of("AttentionForward", op),
                        .out = op.out.data<bf16>(),
                        .log_sum_exp = op.log_sum_exp.data<float>(),
                        .log2_scale = op.scale * log2_e};
  const Extent3 grid =
      grid_of("AttentionForward", slots(forward.problem.packing, Axis::queries, tile_rows),
              forward.problem.heads);
  if (grid.x == 0) return;
  launch(stream,
         {.kernel = "attention_forward_wgmma_128",
          .grid = grid,
          .block = {threads},
          .shared_bytes = sizeof(Storage)},
         attention_forward_wgmma_128, tensor_map(op.q, tile_rows), tensor_map(op.k, tile_keys),
         tensor_map(op.v, tile_keys), forward);
}

}  // namespace orchard::GPU_NAMESPACE
