// Routing decisions on the CPU: tokens choose in parallel, then each sequence applies its capacity
// in the order of choices and adds up its statistics.
#include "kernels/router/router_cpu.h"

#include <algorithm>

#include "kernels/cpu/parallel.h"
#include "kernels/cpu/register.h"
#include "kernels/device/device.h"
#include "kernels/device/scratch.h"

namespace orchard::cpu {
namespace {

constexpr std::int64_t token_grain = 64;

void check_sequences(std::string_view operation, const ConstTensor& sequence_offsets,
                     const ConstTensor& real_tokens, std::int64_t tokens) {
  const std::int32_t* const offsets = sequence_offsets.data<std::int32_t>();
  const std::int64_t sequences = real_tokens.dim(0);
  require(offsets[0] == 0 && offsets[sequences] == tokens,
          "{}: sequence_offsets run from {} to {}, expected 0 to {} tokens", operation, offsets[0],
          offsets[sequences], tokens);
  for (std::int64_t s = 0; s < sequences; ++s) {
    const std::int32_t real = real_tokens.data<std::int32_t>()[s];
    require(offsets[s] <= offsets[s + 1] && real >= 0 && real <= offsets[s + 1] - offsets[s],
            "{}: sequence {} spans tokens [{}, {}) and cannot hold {} real ones", operation, s,
            offsets[s], offsets[s + 1], real);
  }
}

void check_replay(const RouterForward& op) {
  for_each_sequence_part(
      op.sequence_offsets, op.real_tokens, 0, op.logits.dim(0),
      [&](std::int64_t, Sequence sequence) {
        for (std::int64_t t = sequence.begin; t < sequence.real_end; ++t) {
          const std::int32_t* const replay = op.replay.data<std::int32_t>() + t * op.k;
          for (int j = 0; j < op.k; ++j) {
            require(replay[j] >= 0 && replay[j] < op.logits.dim(1) &&
                        std::find(replay, replay + j, replay[j]) == replay + j,
                    "RouterForward: replay of token {} names expert {} at choice {}, which is "
                    "out of range [0, {}) or named twice",
                    t, replay[j], j, op.logits.dim(1));
          }
        }
      });
}

// A NaN ranks below every probability: the row's choices stay legal, and its loss shows the NaN.
float score_of(float p) {
  return p >= 0 ? p : -1.0f;
}

// The k experts of largest p, and the best p not chosen (0 where none is left).
float choose_largest(const float* p, std::int64_t experts, int k, std::int32_t* chosen) {
  float best[max_top_k + 1];
  std::int32_t best_expert[max_top_k + 1];
  int held = 0;
  for (std::int64_t e = 0; e < experts; ++e) {
    const float score = score_of(p[e]);
    if (held > k && !(score > best[k])) continue;
    int at = held > k ? k : held++;
    // Strictly larger: an equal score of a lower expert keeps its place.
    for (; at > 0 && score > best[at - 1]; --at) {
      best[at] = best[at - 1];
      best_expert[at] = best_expert[at - 1];
    }
    best[at] = score;
    best_expert[at] = static_cast<std::int32_t>(e);
  }
  std::copy_n(best_expert, k, chosen);
  return held > k ? best[k] : 0.0f;
}

float best_not_chosen(const float* p, std::int64_t experts, const std::int32_t* chosen, int k) {
  float best = 0;
  for (std::int64_t e = 0; e < experts; ++e) {
    if (std::find(chosen, chosen + k, e) == chosen + k) best = std::max(best, score_of(p[e]));
  }
  return best;
}

// Choices, gates before any drop, and margin of one token.
void route_token(const RouterForward& op, std::int64_t t) {
  const std::int64_t experts = op.logits.dim(1);
  const float* const p = op.probabilities.data<float>() + t * experts;
  std::int32_t* const chosen = op.chosen.data<std::int32_t>() + t * op.k;
  float runner_up = 0;
  if (op.replay) {
    std::copy_n(op.replay.data<std::int32_t>() + t * op.k, op.k, chosen);
    if (op.margins) runner_up = best_not_chosen(p, experts, chosen, op.k);
  } else {
    runner_up = choose_largest(p, experts, op.k, chosen);
  }
  float scale = 1e-9f;
  for (int j = 0; j < op.k; ++j) scale += p[chosen[j]];
  for (int j = 0; j < op.k; ++j) op.gates.data<float>()[t * op.k + j] = p[chosen[j]] / scale;
  if (op.margins) {
    op.margins.data<float>()[t] = experts > op.k ? p[chosen[op.k - 1]] - runner_up : 0.0f;
  }
}

void clear_padding(const RouterForward& op, std::int64_t begin, std::int64_t end) {
  const std::int64_t experts = op.logits.dim(1);
  std::fill(op.probabilities.data<float>() + begin * experts,
            op.probabilities.data<float>() + end * experts, 0.0f);
  std::fill(op.log_sum_exp.data<float>() + begin, op.log_sum_exp.data<float>() + end, 0.0f);
  std::fill(op.chosen.data<std::int32_t>() + begin * op.k,
            op.chosen.data<std::int32_t>() + end * op.k, -1);
  std::fill(op.experts.data<std::int32_t>() + begin * op.k,
            op.experts.data<std::int32_t>() + end * op.k, -1);
  std::fill(op.gates.data<float>() + begin * op.k, op.gates.data<float>() + end * op.k, 0.0f);
  if (op.margins) {
    std::fill(op.margins.data<float>() + begin, op.margins.data<float>() + end, 0.0f);
  }
}

// Scratch of one sequence, [experts] each.
struct ExpertTallies {
  double* probability;    // sum of p over the real tokens
  std::int32_t* counted;  // choices that the balance loss counts
  std::int32_t* of_rank;  // choices of the current rank so far
  std::int32_t* kept;     // kept choices of the earlier ranks
  std::int32_t* total;    // choices of all ranks
};

// Walks the choices in order of priority (rank, then token), and drops those beyond the capacity.
void apply_capacity(const RouterForward& op, Sequence sequence, const ExpertTallies& tallies) {
  const std::int64_t experts = op.logits.dim(1);
  const std::int64_t capacity =
      op.capacity_factor > 0
          ? expert_capacity(sequence.real_end - sequence.begin, op.capacity_factor, experts)
          : sequence.end - sequence.begin;
  std::fill_n(tallies.kept, experts, 0);
  std::fill_n(tallies.total, experts, 0);
  for (int j = 0; j < op.k; ++j) {
    std::fill_n(tallies.of_rank, experts, 0);
    for (std::int64_t t = sequence.begin; t < sequence.real_end; ++t) {
      const std::int64_t i = t * op.k + j;
      const std::int32_t e = op.chosen.data<std::int32_t>()[i];
      const bool keep = tallies.kept[e] + tallies.of_rank[e]++ < capacity;
      op.experts.data<std::int32_t>()[i] = keep ? e : -1;
      if (!keep) op.gates.data<float>()[i] = 0;
    }
    for (std::int64_t e = 0; e < experts; ++e) {
      tallies.total[e] += tallies.of_rank[e];
      tallies.kept[e] = static_cast<std::int32_t>(
          std::min<std::int64_t>(capacity, tallies.kept[e] + tallies.of_rank[e]));
    }
    if (j == 0 || op.balance_counts == BalanceCounts::all_choices) {
      std::copy_n(tallies.total, experts, tallies.counted);
    }
  }
}

void sum_losses(const RouterForward& op, std::int64_t s, Sequence sequence,
                const ExpertTallies& tallies) {
  const std::int64_t experts = op.logits.dim(1);
  std::fill_n(tallies.probability, experts, 0.0);
  double z = 0;
  for (std::int64_t t = sequence.begin; t < sequence.real_end; ++t) {
    const float* const p = op.probabilities.data<float>() + t * experts;
    for (std::int64_t e = 0; e < experts; ++e) tallies.probability[e] += p[e];
    const double log_sum_exp = op.log_sum_exp.data<float>()[t];
    z += log_sum_exp * log_sum_exp;
  }
  const double real = std::max(1.0, static_cast<double>(sequence.real_end - sequence.begin));
  const int counted = op.balance_counts == BalanceCounts::all_choices ? op.k : 1;
  double balance = 0;
  for (std::int64_t e = 0; e < experts; ++e) {
    const double fraction = tallies.counted[e] / real;
    op.choice_fractions.data<float>()[s * experts + e] = static_cast<float>(fraction);
    balance += fraction * (tallies.probability[e] / real);
  }
  op.balance_loss.data<float>()[s] =
      static_cast<float>(balance * static_cast<double>(experts) / counted);
  op.z_loss.data<float>()[s] = static_cast<float>(z);
}

void router_forward(Stream& stream, const RouterForward& op) {
  const std::int64_t tokens = op.logits.dim(0), experts = op.logits.dim(1);
  const std::int64_t sequences = op.real_tokens.dim(0);
  check_sequences("RouterForward", op.sequence_offsets, op.real_tokens, tokens);
  if (op.replay) check_replay(op);

  parallel_for(tokens, token_grain, [&](std::int64_t begin, std::int64_t end) {
    for_each_sequence_part(op.sequence_offsets, op.real_tokens, begin, end,
                           [&](std::int64_t, Sequence part) {
                             softmax_rows(op, part.begin, part.real_end);
                             for (std::int64_t t = part.begin; t < part.real_end; ++t) {
                               route_token(op, t);
                             }
                             clear_padding(op, part.real_end, part.end);
                           });
  });

  ScratchLayout layout;
  const auto probability = layout.add<double>(sequences * experts);
  const auto counted = layout.add<std::int32_t>(sequences * experts);
  const auto of_rank = layout.add<std::int32_t>(sequences * experts);
  const auto kept = layout.add<std::int32_t>(sequences * experts);
  const auto total = layout.add<std::int32_t>(sequences * experts);
  std::byte* const scratch = stream.workspace(layout.bytes());
  parallel_tasks(sequences, [&](std::int64_t s) {
    const Sequence sequence = sequence_at(op.sequence_offsets.data<std::int32_t>(),
                                          op.real_tokens.data<std::int32_t>(), s);
    const std::int64_t at = s * experts;
    const ExpertTallies tallies{probability.in(scratch) + at, counted.in(scratch) + at,
                                of_rank.in(scratch) + at, kept.in(scratch) + at,
                                total.in(scratch) + at};
    apply_capacity(op, sequence, tallies);
    sum_losses(op, s, sequence, tallies);
  });

  std::int32_t* const counts = op.expert_counts.data<std::int32_t>();
  std::fill_n(counts, 2 * experts, 0);
  for (std::int64_t s = 0; s < sequences; ++s) {
    for (std::int64_t e = 0; e < experts; ++e) {
      counts[e] += total.in(scratch)[s * experts + e];
      counts[experts + e] += kept.in(scratch)[s * experts + e];
    }
  }
}

void router_backward(Stream&, const RouterBackward& op) {
  const std::int64_t tokens = op.probabilities.dim(0), experts = op.probabilities.dim(1);
  check_sequences("RouterBackward", op.sequence_offsets, op.real_tokens, tokens);
  parallel_for(tokens, token_grain, [&](std::int64_t begin, std::int64_t end) {
    for_each_sequence_part(op.sequence_offsets, op.real_tokens, begin, end,
                           [&](std::int64_t s, Sequence part) {
                             gradient_rows(op, s, part.begin, part.real_end);
                             std::fill(op.d_logits.data<float>() + part.real_end * experts,
                                       op.d_logits.data<float>() + part.end * experts, 0.0f);
                           });
  });
}

}  // namespace

void register_router(OperationTable& table) {
  table.add<RouterForward>(router_forward);
  table.add<RouterBackward>(router_backward);
}

}  // namespace orchard::cpu
