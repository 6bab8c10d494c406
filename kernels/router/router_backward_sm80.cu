// The router's gradient on GPUs, from sm_80 on: one warp a token. Bytes: 8 per logit, 12 per
// choice. FLOPs: about 6 per logit. Bound: HBM bandwidth.
//
// With S the sum of the k chosen p plus 1e-9, g_j = p_j/S and G_j = d_gates of the kept choices:
//   d_p[e] = balance_scale · E·f_e / (k'·real tokens) + [e = e_i chosen] · (G_i - Σ_j G_j·g_j) / S
//   d_logits = p · (d_p - Σ_e p·d_p + 2·z_scale·log_sum_exp)
#include "kernels/device/device.h"
#include "kernels/gpu/grid.h"
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
  int tokens, experts, k;
  float balance_scale;  // times experts / k'
  float z_scale;
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

template <int n>
__global__ void __launch_bounds__(router_threads) route_gradient(RouterGradient op) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int token =
      static_cast<int>(blockIdx.x) * router_warps + static_cast<int>(threadIdx.x) / 32;
  if (token >= op.tokens) return;  // whole warps, and no barrier follows
  const TokenRange sequence = sequence_of(op.sequences, token);
  const std::int64_t row = static_cast<std::int64_t>(token) * op.experts;
  if (token >= sequence.real_end) {
    for (int e = lane; e < op.experts; e += 32) store(op.d_logits + row + e, 0.0f);
    return;
  }
  float p[n], d_p[n];
  const float balance = op.balance_scale / static_cast<float>(sequence.real_end - sequence.begin);
#pragma unroll
  for (int i = 0; i < n; ++i) {
    const int e = lane + 32 * i;
    p[i] = e < op.experts ? load(op.probabilities + row + e) : 0.0f;
    d_p[i] =
        e < op.experts
            ? balance * load_readonly(op.fractions +
                                      static_cast<std::int64_t>(sequence.sequence) * op.experts + e)
            : 0.0f;
  }

  // Lane j has the j-th choice.
  int expert = -1;
  float chosen_p = 0, d_gate = 0;
  if (lane < op.k) {
    const std::int64_t at = static_cast<std::int64_t>(token) * op.k + lane;
    expert = load(op.chosen + at);
    chosen_p = load(op.probabilities + row + expert);
    d_gate = load(op.kept + at) >= 0 ? load(op.d_gates + at) : 0.0f;
  }
  const float scale = warp_sum(chosen_p) + 1e-9f;
  const float dot = warp_sum(d_gate * chosen_p);
  const float term = (d_gate - dot / scale) / scale;
  for (int j = 0; j < op.k; ++j) {
    const int choice = __shfl_sync(all_lanes, expert, j);
    const float d_choice = __shfl_sync(all_lanes, term, j);
#pragma unroll
    for (int i = 0; i < n; ++i) {
      if (choice == lane + 32 * i) d_p[i] += d_choice;
    }
  }

  float expectation = 0;
#pragma unroll
  for (int i = 0; i < n; ++i) expectation = fmaf(p[i], d_p[i], expectation);
  const float shift = 2 * op.z_scale * load(op.log_sum_exp + token) - warp_sum(expectation);
#pragma unroll
  for (int i = 0; i < n; ++i) {
    const int e = lane + 32 * i;
    if (e < op.experts) store(op.d_logits + row + e, p[i] * (d_p[i] + shift));
  }
}

void router_backward(Stream& stream, const RouterBackward& op) {
  const std::int64_t tokens = op.probabilities.dim(0), experts = op.probabilities.dim(1);
  if (tokens == 0) return;
  const int counted = op.balance_counts == BalanceCounts::all_choices ? op.k : 1;
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
      .tokens = int_extent("RouterBackward", tokens),
      .experts = static_cast<int>(experts),
      .k = op.k,
      .balance_scale = op.balance_scale * static_cast<float>(experts) / static_cast<float>(counted),
      .z_scale = op.z_scale};
  visit_experts_per_lane("RouterBackward", experts, [&](auto n) {
    launch(stream,
           {.kernel = "router_backward",
            .grid = {blocks_for("RouterBackward", tokens, router_warps)},
            .block = {router_threads}},
           route_gradient<n>, gradient);
  });
}

}  // namespace

void register_router_backward(OperationTable& table) {
  table.add<RouterBackward>(router_backward);
}

}  // namespace orchard::GPU_NAMESPACE
