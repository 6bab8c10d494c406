// Top-k gating of a mixture of experts, deterministic, with GShard's capacity rule (Lepikhin et al.
// 2021, algorithm 1, as AXLearn runs it for k = 2), load-balance loss (Fedus et al. 2021, eq. 4)
// and router z-loss (Zoph et al. 2022, eq. 5). A routing group is one packed sequence; only its
// real (leading) tokens take part: padding gets no expert and counts nowhere. fp32 throughout.
//
//   p = softmax(logits)
//   choices: the k experts of largest p, in falling order, ties to the lower expert
//   gate_j = p[e_j] / (sum of the k chosen p + 1e-9), normalised before any drop and not again
//            after it
//   C = max(1, int(real tokens · factor / experts)), per sequence
//   position of choice j = choices j of that expert by earlier tokens + its kept choices of ranks
//            below j; at C or beyond it is dropped: all first choices go before all second ones
//   balance loss of a sequence = E² · mean_e(f_e · P_e) / k'; f_e: the choices (BalanceCounts) of
//            e per real token, before capacity; P_e: the mean of p[e] over the real tokens; 1 for
//            uniform routing
//
// Bound by memory: 8 bytes per logit forward, 8 backward. The CPU checks sequences and replays; GPUs,
// whose integers no host code reads, do not, and take at most 256 experts and 4095 sequences.
#pragma once

#include <algorithm>

#include "kernels/core/tensor.h"

namespace orchard {

class Stream;

inline constexpr int max_top_k = 8;

// C of one sequence. In fp32, so that a factor like 0.9f counts as the decimal it was written as.
constexpr std::int64_t expert_capacity(std::int64_t real_tokens, float factor,
                                       std::int64_t experts) {
  const auto capacity = static_cast<std::int64_t>(static_cast<float>(real_tokens) * factor /
                                                  static_cast<float>(experts));
  return capacity > 1 ? capacity : 1;
}

// The rule for a micro-batch of sequences of equal length.
struct CapacityRule {
  float factor = 1;  // above 0
  std::int64_t experts = 1;
  std::int64_t length = 1;  // rows of a sequence, padding included
};

// The most choices of one expert that rows [begin, end) of the micro-batch keep, whatever the router
// makes of them: C of each sequence that they touch, which padding only lowers, and one a row, whose
// choices are distinct.
constexpr std::int64_t most_kept_choices(const CapacityRule& rule, std::int64_t begin,
                                         std::int64_t end) {
  const std::int64_t capacity = expert_capacity(rule.length, rule.factor, rule.experts);
  std::int64_t most = 0;
  for (std::int64_t next = 0; begin < end; begin = next) {
    next = std::min((begin / rule.length + 1) * rule.length, end);
    most += std::min(next - begin, capacity);
  }
  return most;
}

enum class BalanceCounts : std::uint8_t {
  first_choice,  // f_e counts first choices, k' = 1: MM1.5's top-2
  all_choices,   // f_e counts all k choices, k' = k
};

struct RouterForward {
  ConstTensor logits;            // f32 [tokens, experts]
  ConstTensor sequence_offsets;  // i32 [sequences + 1]
  ConstTensor real_tokens;       // i32 [sequences], real tokens at the head of each sequence
  // i32 [tokens, k]: choose these experts instead of the top k (padding is ignored); absent: choose
  ConstTensor replay = {};
  int k = 2;                  // at most max_top_k and the number of experts
  float capacity_factor = 0;  // 0: dropless
  BalanceCounts balance_counts = BalanceCounts::first_choice;
  Tensor probabilities;  // f32 [tokens, experts]; zero for padding
  Tensor log_sum_exp;    // f32 [tokens]; zero for padding
  Tensor chosen;         // i32 [tokens, k] before capacity; -1 for padding
  Tensor experts;        // i32 [tokens, k] after capacity: -1 where dropped or padding
  Tensor gates;          // f32 [tokens, k]; zero where dropped or padding
  // f32 [tokens]: p of the last choice minus p of the best expert not chosen (0 where all are
  // chosen), negative where a replay contradicts p; zero for padding; absent: not wanted
  Tensor margins = {};
  Tensor choice_fractions;  // f32 [sequences, experts], f_e
  Tensor balance_loss;      // f32 [sequences]
  Tensor z_loss;            // f32 [sequences]: sum over the sequence's real tokens of log_sum_exp²
  // i32 [2, experts]: choices per expert before and after capacity, over all sequences
  Tensor expert_counts;
};

// d_logits from the gates' gradient and from the two losses:
//   total = ... + balance_scale · sum over sequences of balance_loss + z_scale · sum of z_loss
// f_e is a constant; gradient flows through P_e, the gates and log_sum_exp.
struct RouterBackward {
  ConstTensor probabilities, log_sum_exp, chosen, experts, choice_fractions;  // forward's
  ConstTensor sequence_offsets, real_tokens;
  ConstTensor d_gates;  // f32 [tokens, k]; entries of dropped choices are ignored
  int k = 2;
  BalanceCounts balance_counts = BalanceCounts::first_choice;
  // f32 [1] each; absent: 0. In memory, because they change from step to step, and the arguments of
  // a graph do not.
  ConstTensor balance_scale = {}, z_scale = {};
  Tensor d_logits;  // f32 [tokens, experts]
};

void run(Stream&, const RouterForward&);
void run(Stream&, const RouterBackward&);

}  // namespace orchard
