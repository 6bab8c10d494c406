// Routing on GPUs, from sm_80 on, in three launches (two without a capacity):
//
//   choose   softmax, top k, gates and margin of each token, one warp a token; a block also sums up
//            its slice of at most 64 tokens of one sequence: probabilities, choices, z loss
//   tally    one block a sequence: sums over the slices, losses, and the position in its expert's
//            queue that each slice begins at
//   drop     each slice ranks its choices again and drops those beyond the capacity
//
// Bytes: 8 per logit, 12 per choice, and 4·(1 + k)/64 per logit for the slices' sums, twice. FLOPs:
// about 10 and an exponential per logit. Bound: HBM bandwidth, for few experts the latency of the
// warp's reductions (15 + 5·k shuffles a token).
//
// All sums have an order that the shapes fix; counts are integers. So a run repeats bit for bit.
#include <limits>

#include "kernels/device/device.h"
#include "kernels/device/scratch.h"
#include "kernels/gpu/grid.h"
#include "kernels/gpu/register.h"
#include "kernels/router/router.h"
#include "kernels/router/router_gpu.h"

namespace orchard::GPU_NAMESPACE {
namespace {

struct Router {
  const float* logits;  // [tokens, experts]
  Sequences sequences;
  const std::int32_t* replay;  // [tokens, k], or nullptr
  int experts, k;
  float capacity_factor;
  BalanceCounts balance_counts;

  float* probabilities;  // [tokens, experts]
  float* log_sum_exp;    // [tokens]
  std::int32_t* chosen;  // [tokens, k]
  std::int32_t* kept;    // [tokens, k]
  float* gates;          // [tokens, k]
  float* margins;        // [tokens], or nullptr
  float* fractions;      // [sequences, experts]
  float* balance_loss;   // [sequences]
  float* z_loss;         // [sequences]
  std::int32_t* counts;  // [2, experts]

  // Of each slice: the sum of p over its real tokens, its share of the z loss, and its choices of
  // each rank, which `tally` replaces by the queue position of the first of them.
  float* slice_mass;            // [slices, experts]
  float* slice_z;               // [slices]
  std::int32_t* slice_choices;  // [slices, k, experts]

  __device__ int capacity_of(const TokenRange& sequence) const {
    return static_cast<int>(
        expert_capacity(sequence.real_end - sequence.begin, capacity_factor, experts));
  }
};

// ---- choose ------------------------------------------------------------------------------------

__device__ inline int lane_of_thread() {
  return static_cast<int>(threadIdx.x) % 32;
}
__device__ inline int warp_of_thread() {
  return static_cast<int>(threadIdx.x) / 32;
}

// Orders (p, expert) so that the largest key is the choice: larger p first, ties to the lower
// expert, NaN below every number. 0: not there, or taken.
__device__ inline std::uint64_t key_of(float p, int expert) {
  const unsigned rank = p >= 0 ? __float_as_uint(p) + 2 : 1;
  return static_cast<std::uint64_t>(rank) << 32 | ~static_cast<unsigned>(expert);
}
__device__ inline int expert_of(std::uint64_t key) {
  return static_cast<int>(~static_cast<unsigned>(key));
}
__device__ inline float score_of(std::uint64_t key) {
  const auto rank = static_cast<unsigned>(key >> 32);
  return rank >= 2 ? __uint_as_float(rank - 2) : 0.0f;
}

template <int n>
__device__ std::uint64_t warp_max(const std::uint64_t (&keys)[n]) {
  std::uint64_t best = 0;
#pragma unroll
  for (int i = 0; i < n; ++i) best = std::max(best, keys[i]);
  for (int distance = 16; distance > 0; distance /= 2) {
    best = std::max(best, __shfl_xor_sync(all_lanes, best, distance));
  }
  return best;
}

// The probabilities of a token's experts, 0 beyond the last; also its log_sum_exp.
template <int n>
struct Softmax {
  float p[n];
  float log_sum_exp;
};
template <int n>
__device__ Softmax<n> softmax(const float* logits, int experts) {
  Softmax<n> out;
  const int lane = lane_of_thread();
  float largest = -std::numeric_limits<float>::infinity();
#pragma unroll
  for (int i = 0; i < n; ++i) {
    out.p[i] = lane + 32 * i < experts ? load(logits + lane + 32 * i)
                                       : -std::numeric_limits<float>::infinity();
    largest = fmaxf(largest, out.p[i]);
  }
  for (int distance = 16; distance > 0; distance /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(all_lanes, largest, distance));
  }
  float sum = 0;
#pragma unroll
  for (int i = 0; i < n; ++i) {
    out.p[i] = lane + 32 * i < experts ? expf(out.p[i] - largest) : 0.0f;
    sum += out.p[i];
  }
  sum = warp_sum(sum);
#pragma unroll
  for (int i = 0; i < n; ++i) out.p[i] /= sum;
  out.log_sum_exp = largest + logf(sum);
  return out;
}

struct SliceStorage {
  float mass[router_warps][max_router_experts];
  float z[router_warps];
  int chosen[slice_tokens][max_top_k];
};

// Everything of one token that depends on it alone. `chosen` receives the k choices.
template <int n>
__device__ void route_token(const Router& op, std::int64_t token, const Softmax<n>& row,
                            int* chosen) {
  const int lane = lane_of_thread();
  std::uint64_t keys[n];
#pragma unroll
  for (int i = 0; i < n; ++i) {
    const int expert = lane + 32 * i;
    keys[i] = expert < op.experts ? key_of(row.p[i], expert) : 0;
    if (expert < op.experts) store(op.probabilities + token * op.experts + expert, row.p[i]);
  }
  int own_choice = 0;  // lane j: the j-th choice and its p
  float own_p = 0, last_p = 0, scale = 1e-9f;
  for (int j = 0; j < op.k; ++j) {
    const int expert =
        op.replay != nullptr ? load(op.replay + token * op.k + j) : expert_of(warp_max(keys));
    float p = 0;
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const bool own = expert == lane + 32 * i;
      p = own ? row.p[i] : p;
      keys[i] = own ? 0 : keys[i];
    }
    last_p = __shfl_sync(all_lanes, p, expert % 32);
    scale += last_p;
    if (lane == j) own_choice = expert, own_p = last_p;
  }
  if (lane < op.k) {
    const std::int64_t at = token * op.k + lane;
    chosen[lane] = own_choice;
    store(op.chosen + at, own_choice);
    store(op.kept + at, own_choice);  // until `drop`
    store(op.gates + at, own_p / scale);
  }
  if (op.margins != nullptr) {
    const float runner_up = score_of(warp_max(keys));
    if (lane == 0) store(op.margins + token, op.experts > op.k ? last_p - runner_up : 0.0f);
  }
  if (lane == 0) store(op.log_sum_exp + token, row.log_sum_exp);
}

__device__ inline void clear_token(const Router& op, std::int64_t token, int* chosen) {
  const int lane = lane_of_thread();
  for (int expert = lane; expert < op.experts; expert += 32) {
    store(op.probabilities + token * op.experts + expert, 0.0f);
  }
  if (lane < op.k) {
    const std::int64_t at = token * op.k + lane;
    chosen[lane] = -1;
    store(op.chosen + at, -1);
    store(op.kept + at, -1);
    store(op.gates + at, 0.0f);
  }
  if (lane == 0) {
    store(op.log_sum_exp + token, 0.0f);
    if (op.margins != nullptr) store(op.margins + token, 0.0f);
  }
}

template <int n>
__global__ void __launch_bounds__(router_threads) choose(Router op) {
  auto& shared = shared_storage<SliceStorage>();
  const TokenRange slice = find_slice(op.sequences, static_cast<int>(blockIdx.x));
  if (slice.sequence < 0) return;  // whole blocks
  const int lane = lane_of_thread(), warp = warp_of_thread();
  float mass[n] = {}, z = 0;
  for (int token = slice.begin + warp; token < slice.end; token += router_warps) {
    int* const chosen = shared.chosen[token - slice.begin];
    if (token >= slice.real_end) {
      clear_token(op, token, chosen);
      continue;
    }
    const Softmax<n> row =
        softmax<n>(op.logits + static_cast<std::int64_t>(token) * op.experts, op.experts);
    route_token(op, token, row, chosen);
#pragma unroll
    for (int i = 0; i < n; ++i) mass[i] += row.p[i];
    z = fmaf(row.log_sum_exp, row.log_sum_exp, z);
  }
#pragma unroll
  for (int i = 0; i < n; ++i) shared.mass[warp][lane + 32 * i] = mass[i];
  if (lane == 0) shared.z[warp] = z;
  __syncthreads();

  const std::int64_t index = blockIdx.x;
  const int expert = static_cast<int>(threadIdx.x);
  if (expert == 0) {
    float sum = 0;
    for (const float share : shared.z) sum += share;
    store(op.slice_z + index, sum);
  }
  if (expert >= op.experts) return;
  float sum = 0;
  for (int w = 0; w < router_warps; ++w) sum += shared.mass[w][expert];
  store(op.slice_mass + index * op.experts + expert, sum);
  for (int j = 0; j < op.k; ++j) {
    int choices = 0;
    for (int t = 0; t < slice.end - slice.begin; ++t) choices += shared.chosen[t][j] == expert;
    store(op.slice_choices + (index * op.k + j) * op.experts + expert, choices);
  }
}

// ---- tally -------------------------------------------------------------------------------------

struct LossStorage {
  double balance[router_warps], z[router_warps];
};

// The sum of column[i · stride], i in [0, count), with several loads in flight.
template <class Sum, class T>
__device__ Sum sum_column(const T* column, int count, std::int64_t stride) {
  constexpr int in_flight = 8;
  Sum sum = 0;
  for (int first = 0; first < count; first += in_flight) {
    T held[in_flight];
#pragma unroll
    for (int i = 0; i < in_flight; ++i) {
      held[i] = first + i < count ? load(column + (first + i) * stride) : T{};
    }
#pragma unroll
    for (int i = 0; i < in_flight; ++i) sum += held[i];
  }
  return sum;
}

// Each element becomes `start` plus the sum of those before it.
__device__ inline void scan_column(std::int32_t* column, int count, std::int64_t stride,
                                   int start) {
  constexpr int in_flight = 8;
  for (int first = 0; first < count; first += in_flight) {
    int held[in_flight];
#pragma unroll
    for (int i = 0; i < in_flight; ++i) {
      held[i] = first + i < count ? load(column + (first + i) * stride) : 0;
    }
#pragma unroll
    for (int i = 0; i < in_flight; ++i) {
      if (first + i < count) store(column + (first + i) * stride, start);
      start += held[i];
    }
  }
}

// A block is a sequence, a thread an expert.
__global__ void __launch_bounds__(router_threads) tally(Router op) {
  auto& shared = shared_storage<LossStorage>();
  const int s = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  std::int64_t first_slice = 0;
  for (int before = 0; before < s; ++before) {
    first_slice += slices_of(whole_sequence(op.sequences, before));
  }
  const TokenRange sequence = whole_sequence(op.sequences, s);
  const int slices = slices_of(sequence);
  const double real = std::max(1, sequence.real_end - sequence.begin);
  const int capacity = op.capacity_factor > 0 ? op.capacity_of(sequence) : sequence.end;

  double balance = 0;
  if (thread < op.experts) {
    int total = 0, kept = 0, counted = 0;
    for (int j = 0; j < op.k; ++j) {
      std::int32_t* const choices =
          op.slice_choices + (first_slice * op.k + j) * op.experts + thread;
      const std::int64_t stride = static_cast<std::int64_t>(op.k) * op.experts;
      const int of_rank = sum_column<int>(choices, slices, stride);
      if (op.capacity_factor > 0) scan_column(choices, slices, stride, kept);
      total += of_rank;
      kept = std::min(capacity, kept + of_rank);
      if (j == 0 || op.balance_counts == BalanceCounts::all_choices) counted = total;
    }
    if (total > 0) atomicAdd(op.counts + thread, total);
    if (kept > 0) atomicAdd(op.counts + op.experts + thread, kept);
    const double fraction = counted / real;
    const double mass =
        sum_column<double>(op.slice_mass + first_slice * op.experts + thread, slices, op.experts);
    store(op.fractions + static_cast<std::int64_t>(s) * op.experts + thread,
          static_cast<float>(fraction));
    balance = fraction * (mass / real);
  }
  double z = 0;
  for (int i = thread; i < slices; i += router_threads) z += load(op.slice_z + first_slice + i);
  balance = warp_sum(balance);
  z = warp_sum(z);
  if (lane_of_thread() == 0) {
    shared.balance[warp_of_thread()] = balance;
    shared.z[warp_of_thread()] = z;
  }
  __syncthreads();
  if (thread > 0) return;
  balance = z = 0;
  for (int warp = 0; warp < router_warps; ++warp) {
    balance += shared.balance[warp];
    z += shared.z[warp];
  }
  const int counted_choices = op.balance_counts == BalanceCounts::all_choices ? op.k : 1;
  store(op.balance_loss + s, static_cast<float>(balance * op.experts / counted_choices));
  store(op.z_loss + s, static_cast<float>(z));
}

// ---- drop --------------------------------------------------------------------------------------

struct DropStorage {
  int chosen[slice_tokens * max_top_k];
};

__global__ void __launch_bounds__(router_threads) drop(Router op) {
  auto& shared = shared_storage<DropStorage>();
  const TokenRange slice = find_slice(op.sequences, static_cast<int>(blockIdx.x));
  if (slice.sequence < 0) return;
  const std::int64_t first = static_cast<std::int64_t>(slice.begin) * op.k;
  const int choices = (slice.real_end - slice.begin) * op.k;
  for (int i = static_cast<int>(threadIdx.x); i < choices; i += router_threads) {
    shared.chosen[i] = load(op.chosen + first + i);
  }
  __syncthreads();
  const int capacity = op.capacity_of(whole_sequence(op.sequences, slice.sequence));
  for (int i = static_cast<int>(threadIdx.x); i < choices; i += router_threads) {
    const int expert = shared.chosen[i], rank = i % op.k;
    int position =
        load(op.slice_choices + (static_cast<std::int64_t>(blockIdx.x) * op.k + rank) * op.experts +
             expert);
    for (int earlier = rank; earlier < i; earlier += op.k) {
      position += shared.chosen[earlier] == expert;
    }
    if (position < capacity) continue;
    store(op.kept + first + i, -1);
    store(op.gates + first + i, 0.0f);
  }
}

void router_forward(Stream& stream, const RouterForward& op) {
  const std::int64_t experts = op.logits.dim(1), sequences = op.real_tokens.dim(0);
  const std::int64_t tokens = int_extent("RouterForward", op.logits.dim(0));
  // A sequence's last slice may be a short one.
  const std::int64_t slices = tokens / slice_tokens + sequences;
  ScratchLayout layout;
  const auto mass = layout.add<float>(slices * experts);
  const auto z = layout.add<float>(slices);
  const auto choices = layout.add<std::int32_t>(slices * op.k * experts);
  std::byte* const scratch = stream.workspace(layout.bytes());
  const Router router{
      .logits = op.logits.data<float>(),
      .sequences = {op.sequence_offsets.data<std::int32_t>(), op.real_tokens.data<std::int32_t>(),
                    int_extent("RouterForward", sequences)},
      .replay = op.replay.data<std::int32_t>(),
      .experts = static_cast<int>(experts),
      .k = op.k,
      .capacity_factor = op.capacity_factor,
      .balance_counts = op.balance_counts,
      .probabilities = op.probabilities.data<float>(),
      .log_sum_exp = op.log_sum_exp.data<float>(),
      .chosen = op.chosen.data<std::int32_t>(),
      .kept = op.experts.data<std::int32_t>(),
      .gates = op.gates.data<float>(),
      .margins = op.margins.data<float>(),
      .fractions = op.choice_fractions.data<float>(),
      .balance_loss = op.balance_loss.data<float>(),
      .z_loss = op.z_loss.data<float>(),
      .counts = op.expert_counts.data<std::int32_t>(),
      .slice_mass = mass.in(scratch),
      .slice_z = z.in(scratch),
      .slice_choices = choices.in(scratch)};
  stream.fill_zero(op.expert_counts);
  if (sequences == 0) return;
  const Extent3 slice_grid{blocks_for("RouterForward", slices, 1)}, block{router_threads};
  visit_experts_per_lane("RouterForward", experts, [&](auto n) {
    launch(stream,
           {.kernel = "router_choose",
            .grid = slice_grid,
            .block = block,
            .shared_bytes = sizeof(SliceStorage)},
           choose<n>, router);
  });
  launch(stream,
         {.kernel = "router_tally",
          .grid = {blocks_for("RouterForward", sequences, 1)},
          .block = block,
          .shared_bytes = sizeof(LossStorage)},
         tally, router);
  if (op.capacity_factor > 0) {
    launch(stream,
           {.kernel = "router_drop",
            .grid = slice_grid,
            .block = block,
            .shared_bytes = sizeof(DropStorage)},
           drop, router);
  }
}

}  // namespace

void register_router(OperationTable& table) {
  table.add<RouterForward>(router_forward);
  register_router_backward(table);
}

}  // namespace orchard::GPU_NAMESPACE
