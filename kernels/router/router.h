// Top-k gating of a mixture of experts, deterministic, with GShard's capacity rule (Lepikhin et al.
// 2021, algorithm 1, as AXLearn runs it for k = 2), load-balance loss (Fedus et al. 2021, eq. 4)
// and router z-loss (Zoph et al. 2022, eq. 5). A routing group is one packed sequence; only its
// real (leading) tokens take part: padding gets no expert and counts nowhere. fp32 throughout.
//
//   p = softmax(logits); choices in order of falling p, ties to the lower expert
//   gate_j = p[e_j] / (sum of the k chosen p + 1e-9)     normalised before any drop, not
//   renormalised after capacity C = max(1, int(real tokens · factor / experts)); all first choices
//   have priority over all second ones: position of choice j = earlier choices j of that expert +
//   its kept choices of ranks < j; >= C: dropped balance loss of a sequence = E² · mean_e(f_e ·
//   P_e) / k', f_e the fraction of choices (BalanceCounts) for e before capacity, P_e the mean of
//   p[e] over its real tokens
#pragma once

#include "kernels/core/tensor.h"

namespace orchard {

class Stream;

enum class BalanceCounts : std::uint8_t {
  first_choice,  // f_e counts first choices, k' = 1: MM1.5's top-2
  all_choices,   // f_e counts all k choices, k' = k
};

struct RouterForward {
  ConstTensor logits;            // f32 [tokens, experts]
  ConstTensor sequence_offsets;  // i32 [sequences + 1]
  ConstTensor real_tokens;       // i32 [sequences], real tokens at the head of each sequence
  ConstTensor replay =
      {};  // i32 [tokens, k]: choose these experts instead of the top-k; absent: choose
  int k = 2;
  float capacity_factor = 0;  // 0: dropless
  BalanceCounts balance_counts = BalanceCounts::first_choice;
  Tensor probabilities;  // f32 [tokens, experts]; zero for padding
  Tensor log_sum_exp;    // f32 [tokens]; zero for padding
  Tensor chosen;         // i32 [tokens, k] before capacity; -1 for padding
  Tensor experts;        // i32 [tokens, k] after capacity: -1 where dropped or padding
  Tensor gates;          // f32 [tokens, k]; zero where dropped or padding
  Tensor margins = {};   // f32 [tokens]: p of the last choice minus p of the best expert not chosen
  Tensor choice_fractions;  // f32 [sequences, experts], f_e
  Tensor balance_loss;      // f32 [sequences]
  Tensor z_loss;            // f32 [sequences]: sum over the sequence's real tokens of log_sum_exp²
  Tensor expert_counts;     // i32 [2, experts]: choices per expert before and after capacity, all
                            // sequences
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
  float balance_scale = 0;
  float z_scale = 0;
  Tensor d_logits;  // f32 [tokens, experts]
};

void run(Stream&, const RouterForward&);
void run(Stream&, const RouterBackward&);

}  // namespace orchard
