// Routing on GPUs, from sm_80 on, in one launch, two with a capacity:
//
//   choose   softmax, top k, gates and margin of each token, by 8 to 32 lanes; a block also sums up
//            its slice of at most 64 tokens of one sequence: probabilities, choices, z loss. The last
//            block of a sequence adds up its slices, the last sequence the counts (router_tally.h)
//   drop     each slice ranks its choices again and drops those beyond the capacity, which is known
//            when all slices of the sequence are
//
// Bytes: 8 per logit, 12 per choice, and (4 + k)/64 per logit for the slices' sums; with a capacity
// choices once more, and the gates of those that it drops. FLOPs: about 10 and an exponential per
// logit. Bound: HBM bandwidth; for few experts or tokens the latency of the launches and, in each, of
// a few dependent loads and reductions over a token's lanes.
//
// All sums have an order that the shapes fix; counts are integers. So a run repeats bit for bit.
#include <limits>

#include "kernels/device/scratch.h"
#include "kernels/device/stream.h"
#include "kernels/device/zero_words.h"
#include "kernels/gpu/grid.h"
#include "kernels/gpu/register.h"
#include "kernels/router/router.h"
#include "kernels/router/router_gpu.h"
#include "kernels/router/router_tally.h"

namespace orchard::GPU_NAMESPACE {
namespace {

// ---- choose ------------------------------------------------------------------------------------

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

// The largest key of a token's lanes, in each of them.
template <class Lanes>
__device__ std::uint64_t largest_key(const std::uint64_t (&keys)[Lanes::per_lane]) {
  std::uint64_t best = 0;
#pragma unroll
  for (int i = 0; i < Lanes::per_lane; ++i) best = std::max(best, keys[i]);
#pragma unroll
  for (int distance = Lanes::lanes / 2; distance > 0; distance /= 2) {
    best = std::max(best, __shfl_xor_sync(all_lanes, best, distance));
  }
  return best;
}

// One number for each of a lane's experts.
template <class Lanes>
struct PerExpert {
  float of[Lanes::per_lane];
};

// Of a token that is not there, zeros.
template <class Lanes>
__device__ PerExpert<Lanes> load_logits(const Router& op, std::int64_t token, bool is_there) {
  PerExpert<Lanes> out;
#pragma unroll
  for (int i = 0; i < Lanes::per_lane; ++i) {
    const int expert = Lanes::expert(i);
    out.of[i] =
        is_there && expert < op.experts ? load(op.logits + token * op.experts + expert) : 0.0f;
  }
  return out;
}

// The probabilities of a token's experts, 0 beyond the last; also its log_sum_exp.
template <class Lanes>
struct Softmax {
  PerExpert<Lanes> p;
  float log_sum_exp;
};
template <class Lanes>
__device__ Softmax<Lanes> softmax(const PerExpert<Lanes>& logits, int experts) {
  Softmax<Lanes> out;
  float largest = -std::numeric_limits<float>::infinity();
#pragma unroll
  for (int i = 0; i < Lanes::per_lane; ++i) {
    if (Lanes::expert(i) < experts) largest = fmaxf(largest, logits.of[i]);
  }
#pragma unroll
  for (int distance = Lanes::lanes / 2; distance > 0; distance /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(all_lanes, largest, distance));
  }
  float sum = 0;
#pragma unroll
  for (int i = 0; i < Lanes::per_lane; ++i) {
    out.p.of[i] = Lanes::expert(i) < experts ? expf(logits.of[i] - largest) : 0.0f;
    sum += out.p.of[i];
  }
  sum = warp_sum(sum, Lanes::lanes);
#pragma unroll
  for (int i = 0; i < Lanes::per_lane; ++i) out.p.of[i] /= sum;
  out.log_sum_exp = largest + logf(sum);
  return out;
}

// A token's choices: lane j has the j-th and its p.
struct Choices {
  int expert = -1;
  float p = 0, sum = 1e-9f;
  float margin = 0;  // of the last over the best that was not chosen
};
template <class Lanes>
__device__ Choices choose_experts(const Router& op, std::int64_t token, bool real,
                                  const PerExpert<Lanes>& p) {
  constexpr int n = Lanes::per_lane;
  std::uint64_t keys[n];
#pragma unroll
  for (int i = 0; i < n; ++i) {
    const int expert = Lanes::expert(i);
    keys[i] = expert < op.experts ? key_of(p.of[i], expert) : 0;
  }
  Choices out;
  float last = 0;
  for (int j = 0; j < op.k; ++j) {
    const int expert = op.replay == nullptr ? expert_of(largest_key<Lanes>(keys))
                       : real               ? load(op.replay + token * op.k + j)
                                            : 0;
    float own = 0;
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const bool is_own = expert == Lanes::expert(i);
      own = is_own ? p.of[i] : own;
      keys[i] = is_own ? 0 : keys[i];
    }
    last = __shfl_sync(all_lanes, own, expert % Lanes::lanes, Lanes::lanes);
    out.sum += last;
    if (Lanes::lane() == j) out.expert = expert, out.p = last;
  }
  if (op.margins != nullptr) {
    const float runner_up = score_of(largest_key<Lanes>(keys));
    out.margin = op.experts > op.k ? last - runner_up : 0.0f;
  }
  return out;
}

// Padding has no choices and zeros elsewhere.
template <class Lanes>
__device__ void store_token(const Router& op, std::int64_t token, bool real,
                            const Softmax<Lanes>& row, const Choices& choices) {
  const int lane = Lanes::lane();
#pragma unroll
  for (int i = 0; i < Lanes::per_lane; ++i) {
    const int expert = Lanes::expert(i);
    if (expert < op.experts) {
      store(op.probabilities + token * op.experts + expert, real ? row.p.of[i] : 0.0f);
    }
  }
  if (lane < op.k) {
    const std::int64_t at = token * op.k + lane;
    const int expert = real ? choices.expert : -1;
    store(op.chosen + at, expert);
    if (op.capacity_factor <= 0) store(op.kept + at, expert);  // else `drop` does
    store(op.gates + at, real ? choices.p / choices.sum : 0.0f);
  }
  if (lane == 0) {
    store(op.log_sum_exp + token, real ? row.log_sum_exp : 0.0f);
    if (op.margins != nullptr) store(op.margins + token, real ? choices.margin : 0.0f);
  }
}

struct SliceStorage {
  float mass[router_warps][max_router_experts];
  float z[router_warps];
  int choices[max_top_k * max_router_experts];  // [k, experts]
};

struct ChooseStorage {
  union {
    SliceStorage slice;
    TallyStorage tally;  // when the slice is done
  };
  unsigned before;
};

// The sum over the tokens that a warp has at once, by the lanes that hold the same experts.
template <class Lanes>
__device__ float sum_over_tokens(float value) {
#pragma unroll
  for (int distance = Lanes::lanes; distance < 32; distance *= 2) {
    value += __shfl_xor_sync(all_lanes, value, distance);
  }
  return value;
}

template <class Lanes>
__global__ void __launch_bounds__(router_threads) choose(Router op) {
  constexpr int n = Lanes::per_lane, tokens_at_once = router_warps * Lanes::tokens_of_warp;
  auto& storage = shared_storage<ChooseStorage>();
  SliceStorage& shared = storage.slice;
  const int thread = static_cast<int>(threadIdx.x), warp = warp_of_thread();
  for (int i = thread; i < op.k * op.experts; i += router_threads) shared.choices[i] = 0;
  const TokenRange slice = find_slice(op.sequences, static_cast<int>(blockIdx.x));
  if (slice.sequence < 0) return;  // whole blocks
  __syncthreads();

  PerExpert<Lanes> mass{};
  float z = 0;
  const int own = slice.begin + warp * Lanes::tokens_of_warp + Lanes::token_of_warp();
  PerExpert<Lanes> next = load_logits<Lanes>(op, own, own < slice.real_end);
  // All lanes take as many turns, for the shuffles.
  for (int turn = 0; slice.begin + turn < slice.end; turn += tokens_at_once) {
    const int token = own + turn, later = token + tokens_at_once;
    const bool real = token < slice.real_end;
    const PerExpert<Lanes> logits = next;
    next = load_logits<Lanes>(op, later, later < slice.real_end);
    const Softmax<Lanes> row = softmax<Lanes>(logits, op.experts);
    const Choices choices = choose_experts<Lanes>(op, token, real, row.p);
    if (token < slice.end) store_token<Lanes>(op, token, real, row, choices);
    if (!real) continue;
    if (Lanes::lane() < op.k) {
      atomicAdd(&shared.choices[Lanes::lane() * op.experts + choices.expert], 1);
    }
#pragma unroll
    for (int i = 0; i < n; ++i) mass.of[i] += row.p.of[i];
    z = fmaf(row.log_sum_exp, row.log_sum_exp, z);
  }
#pragma unroll
  for (int i = 0; i < n; ++i) {
    const float sum = sum_over_tokens<Lanes>(mass.of[i]);
    if (Lanes::token_of_warp() == 0) shared.mass[warp][Lanes::expert(i)] = sum;
  }
  z = sum_over_tokens<Lanes>(z);
  if (lane_of_thread() == 0) shared.z[warp] = z;
  __syncthreads();

  const std::int64_t index = blockIdx.x;
  if (thread == 0) {
    float sum = 0;
    for (const float share : shared.z) sum += share;
    store(op.slice_z + index, sum);
  }
  for (int expert = thread; expert < op.experts; expert += router_threads) {
    float sum = 0;
    for (int w = 0; w < router_warps; ++w) sum += shared.mass[w][expert];
    store(op.slice_mass + index * op.experts + expert, sum);
  }
  for (int i = thread; i < op.k * op.experts; i += router_threads) {
    store(op.slice_choices + index * op.slice_stride + i,
          static_cast<std::uint8_t>(shared.choices[i]));
  }

  const int s = slice.sequence;
  const auto slices = static_cast<unsigned>(slices_of(whole_sequence(op.sequences, s)));
  if (!is_last_block(op.arrived + s, slices, storage.before)) return;
  tally(op, s, storage.tally);
  const auto sequences = static_cast<unsigned>(op.sequences.count);
  if (is_last_block(op.arrived + sequences, sequences, storage.before)) add_counts(op);
}

// ---- drop --------------------------------------------------------------------------------------

struct DropStorage {
  int chosen[slice_tokens * max_top_k];
  std::uint8_t room[max_top_k * max_router_experts];  // [k, experts]
};

__global__ void __launch_bounds__(router_threads) drop(Router op) {
  auto& shared = shared_storage<DropStorage>();
  const TokenRange slice = find_slice(op.sequences, static_cast<int>(blockIdx.x));
  if (slice.sequence < 0) return;
  const std::int64_t first = static_cast<std::int64_t>(slice.begin) * op.k;
  const int thread = static_cast<int>(threadIdx.x), choices = (slice.end - slice.begin) * op.k;
  for (int i = thread; i < choices; i += router_threads) {
    shared.chosen[i] = load(op.chosen + first + i);
  }
  const std::uint8_t* const room = op.slice_choices + blockIdx.x * op.slice_stride;
  for (int i = thread; i < op.k * op.experts; i += router_threads) shared.room[i] = load(room + i);
  __syncthreads();
  for (int i = thread; i < choices; i += router_threads) {
    const int expert = shared.chosen[i], rank = i % op.k;
    if (expert < 0) {  // padding
      store(op.kept + first + i, -1);
      continue;
    }
    int left = shared.room[rank * op.experts + expert];
    for (int earlier = rank; earlier < i; earlier += op.k) {
      left -= shared.chosen[earlier] == expert;
    }
    store(op.kept + first + i, left > 0 ? expert : -1);
    if (left <= 0) store(op.gates + first + i, 0.0f);
  }
}

void router_forward(Stream& stream, const RouterForward& op) {
  const std::int64_t experts = op.logits.dim(1), sequences = op.real_tokens.dim(0);
  const std::int64_t tokens = int_extent("RouterForward", op.logits.dim(0));
  require(sequences < zero_words_count, "RouterForward: {} sequences, GPU kernels take at most {}",
          sequences, zero_words_count - 1);
  // A sequence's last slice may be a short one, or empty.
  const std::int64_t slices = tokens / slice_tokens + sequences;
  const std::int64_t slice_stride = ceil_div(op.k * experts, 32) * 32;
  ScratchLayout layout;
  const auto mass = layout.add<float>(slices * experts);
  const auto z = layout.add<float>(slices);
  const auto choices = layout.add<std::uint8_t>(slices * slice_stride);
  const auto counts = layout.add<std::int32_t>(sequences * 2 * experts);
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
      .slice_choices = choices.in(scratch),
      .slice_stride = slice_stride,
      .sequence_counts = counts.in(scratch),
      .arrived = zero_words(stream)};
  if (sequences == 0) return stream.fill_zero(op.expert_counts);
  const Extent3 slice_grid{blocks_for("RouterForward", slices, 1)}, block{router_threads};
  visit_token_lanes("RouterForward", experts, [&]<class Lanes>(Lanes) {
    launch(stream,
           {.kernel = "router_choose",
            .grid = slice_grid,
            .block = block,
            .shared_bytes = sizeof(ChooseStorage)},
           choose<Lanes>, router);
  });
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
