// The router's gradient on GPUs, from sm_80 on: 8 to 32 lanes a token. Bytes: 8 per logit, 12 per
// choice. FLOPs: about 6 per logit. Bound: HBM bandwidth.
//
// With S the sum of the k chosen p plus 1e-9, g_j = p_j/S and G_j = d_gates of the kept choices:
//   d_p[e] = balance_scale · E·f_e / (k'·real tokens) + [e = e_i chosen] · (G_i - Σ_j G_j·g_j) / S
//   d_logits = p · (d_p - Σ_e p·d_p + 2·z_scale·log_sum_exp)
#include "kernels/device/stream.h"
#include "kernels/gpu/grid.h"
#include "kernels/gpu/number.h"
#include "kernels/router/router.h"
#include "kernels/router/router_gpu.h"

namespace orchard::GPU_NAMESPACE {
namespace {

struct RouterGradient {
  const float* probabilities;  // [tokens, experts]
  const float* log_sum_exp;    // [tokens]
  const std::int32_t* chosen;  // [tokens, k]
  const std::int32_t* kept;    // [tokens, k]
  const float* fractions;      // [sequences, experts]
  const float* d_gates;        // [tokens, k]
  float* d_logits;             // [tokens, experts]
  Sequences sequences;
  const float* balance_scale;  // [1], or nullptr: 0
  const float* z_scale;        // likewise
  int tokens, experts, k;
  int counted;  // k'
};

// The last sequence that begins at or before the token and is not empty.
__device__ inline TokenRange sequence_of(const Sequences& all, int token) {
  int low = 0, high = all.count;  // offsets[low] <= token < offsets[high]
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (load(all.offsets + middle) <= token ? low : high) = middle;
  }
  return whole_sequence(all, low);
}

template <class Lanes>
__global__ void __launch_bounds__(router_threads) route_gradient(RouterGradient op) {
  constexpr int n = Lanes::per_lane;
  const int lane = Lanes::lane();
  const int token =
      (static_cast<int>(blockIdx.x) * router_warps + warp_of_thread()) * Lanes::tokens_of_warp +
      Lanes::token_of_warp();
  const bool inside = token < op.tokens;  // others stay for the shuffles
  const std::int64_t row = static_cast<std::int64_t>(token) * op.experts;
  // What does not depend on the sequence is on its way while that is looked for. Lane j has the j-th
  // choice.
  float p[n];
#pragma unroll
  for (int i = 0; i < n; ++i) {
    const int e = Lanes::expert(i);
    p[i] = inside && e < op.experts ? load(op.probabilities + row + e) : 0.0f;
  }
  const bool has_choice = inside && lane < op.k;
  const std::int64_t choice_at = static_cast<std::int64_t>(token) * op.k + lane;
  const int expert = has_choice ? load(op.chosen + choice_at) : -1;
  const bool is_kept = has_choice && load(op.kept + choice_at) >= 0;
  const float log_sum_exp = inside ? load(op.log_sum_exp + token) : 0.0f;
  const float z_scale = number_or(op.z_scale, 0);
  const float balance_scale = number_or(op.balance_scale, 0) * static_cast<float>(op.experts) /
                              static_cast<float>(op.counted);

  const TokenRange sequence = inside ? sequence_of(op.sequences, token) : TokenRange{};
  const bool real = inside && token < sequence.real_end;
  const float* const fractions =
      op.fractions + static_cast<std::int64_t>(sequence.sequence) * op.experts;
  const float balance =
      real ? balance_scale / static_cast<float>(sequence.real_end - sequence.begin) : 0.0f;
  float d_p[n];
#pragma unroll
  for (int i = 0; i < n; ++i) {
    const int e = Lanes::expert(i);
    d_p[i] = real && e < op.experts ? balance * load_readonly(fractions + e) : 0.0f;
  }
  const float chosen_p = real && expert >= 0 ? load(op.probabilities + row + expert) : 0.0f;
  const float d_gate = real && is_kept ? load(op.d_gates + choice_at) : 0.0f;
  const float scale = warp_sum(chosen_p, Lanes::lanes) + 1e-9f;
  const float dot = warp_sum(d_gate * chosen_p, Lanes::lanes);
  const float term = (d_gate - dot / scale) / scale;
  for (int j = 0; j < op.k; ++j) {
    const int choice = __shfl_sync(all_lanes, expert, j, Lanes::lanes);
    const float d_choice = __shfl_sync(all_lanes, term, j, Lanes::lanes);
#pragma unroll
    for (int i = 0; i < n; ++i) {
      if (choice == Lanes::expert(i)) d_p[i] += d_choice;
    }
  }

  float expectation = 0;
#pragma unroll
  for (int i = 0; i < n; ++i) expectation = fmaf(p[i], d_p[i], expectation);
  expectation = warp_sum(expectation, Lanes::lanes);
  if (!inside) return;  // no shuffle follows
  const float shift = 2 * z_scale * log_sum_exp - expectation;
#pragma unroll
  for (int i = 0; i < n; ++i) {
    const int e = Lanes::expert(i);
    if (e < op.experts) store(op.d_logits + row + e, real ? p[i] * (d_p[i] + shift) : 0.0f);
  }
}

void router_backward(Stream& stream, const RouterBackward& op) {
  const std::int64_t tokens = op.probabilities.dim(0), experts = op.probabilities.dim(1);
  if (tokens == 0) return;
  const RouterGradient gradient{
      .probabilities = op.probabilities.data<float>(),
      .log_sum_exp = op.log_sum_exp.data<float>(),
      .chosen = op.chosen.data<std::int32_t>(),
      .kept = op.experts.data<std::int32_t>(),
      .fractions = op.choice_fractions.data<float>(),
      .d_gates = op.d_gates.data<float>(),
      .d_logits = op.d_logits.data<float>(),
      .sequences = {op.sequence_offsets.data<std::int32_t>(), op.real_tokens.data<std::int32_t>(),
                    int_extent("RouterBackward", op.real_tokens.dim(0))},
      .balance_scale = op.balance_scale.data<float>(),
      .z_scale = op.z_scale.data<float>(),
      .tokens = int_extent("RouterBackward", tokens),
      .experts = static_cast<int>(experts),
      .k = op.k,
      .counted = op.balance_counts == BalanceCounts::all_choices ? op.k : 1};
  visit_token_lanes("RouterBackward", experts, [&]<class Lanes>(Lanes) {
    launch(stream,
           {.kernel = "router_backward",
            .grid = {blocks_for("RouterBackward", tokens, router_warps * Lanes::tokens_of_warp)},
            .block = {router_threads}},
           route_gradient<Lanes>, gradient);
  });
}

}  // namespace

void register_router_backward(OperationTable& table) {
  table.add<RouterBackward>(router_backward);
}

}  // namespace orchard::GPU_NAMESPACE
