// The router's dense arithmetic on the CPU: softmax of each token's logits, and its gradient.
// Bound by the exponential forward, by memory backward. Rows are short (8 ... 64 experts) and stay
// in the L1 cache from pass to pass.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/router/router_rows_cpu.cpp"
#include "hwy/foreach_target.h"  // compiles this file once per instruction set
#include "hwy/highway.h"
//
#include <cmath>
#include <limits>

#include "kernels/cpu/loops-inl.h"
#include "kernels/cpu/math-inl.h"
#include "kernels/cpu/number.h"
#include "kernels/cpu/simd-inl.h"
#include "kernels/router/router_cpu.h"

HWY_BEFORE_NAMESPACE();
namespace orchard::cpu::HWY_NAMESPACE {

void softmax(const RouterForward& op, std::int64_t begin, std::int64_t end) {
  constexpr float lowest = -std::numeric_limits<float>::infinity();
  const Floats d;
  const std::int64_t experts = op.logits.dim(1);
  for (std::int64_t t = begin; t < end; ++t) {
    const float* const logits = op.logits.data<float>() + t * experts;
    float* const p = op.probabilities.data<float>() + t * experts;
    Vector largest = set(lowest);
    for_each_vector(experts, [&](std::int64_t i, std::int64_t n) HWY_ATTR {
      largest = hn::Max(largest, first_lanes(load(logits + i, n), n, lowest));
    });
    const float max = hn::GetLane(hn::MaxOfLanes(d, largest));
    Vector total = zero();
    for_each_vector(experts, [&](std::int64_t i, std::int64_t n) HWY_ATTR {
      const Vector e = exp(hn::Sub(load(logits + i, n), set(max)));
      store(e, p + i, n);
      total = hn::Add(total, first_lanes(e, n));
    });
    const float denominator = sum(total);
    for_each_vector(experts, [&](std::int64_t i, std::int64_t n) HWY_ATTR {
      store(hn::Div(load(p + i, n), set(denominator)), p + i, n);
    });
    op.log_sum_exp.data<float>()[t] = max + std::log(denominator);
  }
}

// With S the sum of the k chosen p plus 1e-9, g_j = p_j/S and G_j = d_gates of the kept choices:
//   d_p[e] = balance_scale · E·f_e / (k'·real tokens) + [e = e_i chosen] · (G_i - Σ_j G_j·g_j) / S
//   d_logits = p · (d_p - Σ_e p·d_p + 2·z_scale·log_sum_exp)
void gradient(const RouterBackward& op, std::int64_t s, std::int64_t begin, std::int64_t end) {
  const std::int64_t experts = op.probabilities.dim(1);
  const int counted = op.balance_counts == BalanceCounts::all_choices ? op.k : 1;
  const auto real = static_cast<float>(op.real_tokens.data<std::int32_t>()[s]);
  const float z_scale = number_or(op.z_scale, 0);
  const float balance = number_or(op.balance_scale, 0) * static_cast<float>(experts) /
                        (real * static_cast<float>(counted));
  const float* const fractions = op.choice_fractions.data<float>() + s * experts;
  for (std::int64_t t = begin; t < end; ++t) {
    const float* const p = op.probabilities.data<float>() + t * experts;
    const std::int32_t* const chosen = op.chosen.data<std::int32_t>() + t * op.k;
    const std::int32_t* const kept = op.experts.data<std::int32_t>() + t * op.k;
    const float* const d_gates = op.d_gates.data<float>() + t * op.k;
    float* const d_logits = op.d_logits.data<float>() + t * experts;  // d_p at first
    for_each_vector(experts, [&](std::int64_t i, std::int64_t n) HWY_ATTR {
      store(hn::Mul(load(fractions + i, n), set(balance)), d_logits + i, n);
    });
    float scale = 1e-9f;
    float dot = 0;
    for (int j = 0; j < op.k; ++j) {
      scale += p[chosen[j]];
      if (kept[j] >= 0) dot += d_gates[j] * p[chosen[j]];
    }
    for (int j = 0; j < op.k; ++j) {
      d_logits[chosen[j]] += ((kept[j] >= 0 ? d_gates[j] : 0.0f) - dot / scale) / scale;
    }
    Vector expectation = zero();
    for_each_vector(experts, [&](std::int64_t i, std::int64_t n) HWY_ATTR {
      expectation = hn::MulAdd(load(p + i, n), load(d_logits + i, n), expectation);
    });
    const Vector shift = set(2 * z_scale * op.log_sum_exp.data<float>()[t] - sum(expectation));
    for_each_vector(experts, [&](std::int64_t i, std::int64_t n) HWY_ATTR {
      store(hn::Mul(load(p + i, n), hn::Add(load(d_logits + i, n), shift)), d_logits + i, n);
    });
  }
}

}  // namespace orchard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace orchard::cpu {

HWY_EXPORT(softmax);
HWY_EXPORT(gradient);

void softmax_rows(const RouterForward& op, std::int64_t begin, std::int64_t end) {
  HWY_DYNAMIC_DISPATCH(softmax)(op, begin, end);
}

void gradient_rows(const RouterBackward& op, std::int64_t s, std::int64_t begin, std::int64_t end) {
  HWY_DYNAMIC_DISPATCH(gradient)(op, s, begin, end);
}

}  // namespace orchard::cpu
#endif  // HWY_ONCE
