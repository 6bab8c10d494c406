// What the tests of the router share: a case, and a forward run with all its tensors.
#pragma once

#include <numeric>
#include <vector>

#include "kernels/router/router.h"
#include "tests/kernels/thread_orders.h"

namespace orchard::testing {

// Logits are below 8 in size: x - max is off by 8 roundoffs at most, and exp, division and the sum
// over at most 130 experts add fewer than 24 more.
inline const double router_bound = 32 * unit_roundoff(DType::f32);

struct RouterCase {
  std::int64_t experts;
  int k;
  float capacity_factor;
  BalanceCounts counts;
  std::vector<int> lengths, real;  // per sequence

  std::int64_t tokens() const { return std::accumulate(lengths.begin(), lengths.end(), 0); }
  std::int64_t sequences() const { return static_cast<std::int64_t>(lengths.size()); }
  std::vector<int> offsets() const {
    std::vector<int> out = {0};
    for (const int length : lengths) out.push_back(out.back() + length);
    return out;
  }
};

// One forward run with all its tensors.
struct RouterRun {
  RouterRun(Stream& stream, const RouterCase& c, const Guarded& input,
            const Guarded* replay = nullptr)
      : logits(input),
        offsets(integers({c.sequences() + 1}, c.offsets())),
        real(integers({c.sequences()}, c.real)),
        probabilities(DType::f32, {c.tokens(), c.experts}),
        log_sum_exp(DType::f32, {c.tokens()}),
        chosen(DType::i32, {c.tokens(), c.k}),
        experts(DType::i32, {c.tokens(), c.k}),
        gates(DType::f32, {c.tokens(), c.k}),
        margins(DType::f32, {c.tokens()}),
        fractions(DType::f32, {c.sequences(), c.experts}),
        balance_loss(DType::f32, {c.sequences()}),
        z_loss(DType::f32, {c.sequences()}),
        counts(DType::i32, {2, c.experts}) {
    Guarded replayed = replay ? *replay : zeros(DType::i32, {1});
    OnDevice logits_d(stream, logits), offsets_d(stream, offsets), real_d(stream, real);
    OnDevice replayed_d(stream, replayed), probabilities_d(stream, probabilities);
    OnDevice log_sum_exp_d(stream, log_sum_exp), chosen_d(stream, chosen);
    OnDevice experts_d(stream, experts), gates_d(stream, gates), margins_d(stream, margins);
    OnDevice fractions_d(stream, fractions), balance_loss_d(stream, balance_loss);
    OnDevice z_loss_d(stream, z_loss), counts_d(stream, counts);
    run(stream, RouterForward{.logits = logits_d,
                              .sequence_offsets = offsets_d,
                              .real_tokens = real_d,
                              .replay = replay ? replayed_d.tensor() : Tensor(),
                              .k = c.k,
                              .capacity_factor = c.capacity_factor,
                              .balance_counts = c.counts,
                              .probabilities = probabilities_d,
                              .log_sum_exp = log_sum_exp_d,
                              .chosen = chosen_d,
                              .experts = experts_d,
                              .gates = gates_d,
                              .margins = margins_d,
                              .choice_fractions = fractions_d,
                              .balance_loss = balance_loss_d,
                              .z_loss = z_loss_d,
                              .expert_counts = counts_d});
    for (OnDevice* const output :
         {&probabilities_d, &log_sum_exp_d, &chosen_d, &experts_d, &gates_d, &margins_d,
          &fractions_d, &balance_loss_d, &z_loss_d, &counts_d}) {
      output->download();
    }
    stream.synchronize();
  }

  bool operator==(const RouterRun&) const = default;

  Guarded logits, offsets, real;
  Guarded probabilities, log_sum_exp, chosen, experts, gates, margins, fractions, balance_loss,
      z_loss, counts;
};

// What the two losses weigh in the total.
struct RouterLossScales {
  float balance = 0, z = 0;
};

// d_logits of a forward run.
inline Guarded run_router_backward(Stream& stream, const RouterCase& c, RouterRun& forward,
                                   Guarded& d_gates, const RouterLossScales& scales) {
  Guarded d_logits(DType::f32, {c.tokens(), c.experts});
  OnDevice probabilities_d(stream, forward.probabilities), chosen_d(stream, forward.chosen);
  OnDevice log_sum_exp_d(stream, forward.log_sum_exp), experts_d(stream, forward.experts);
  OnDevice fractions_d(stream, forward.fractions), offsets_d(stream, forward.offsets);
  OnDevice real_d(stream, forward.real), d_gates_d(stream, d_gates);
  Guarded balance = number(scales.balance), z = number(scales.z);
  OnDevice balance_d(stream, balance), z_d(stream, z), d_logits_d(stream, d_logits);
  run_and_download(stream,
                   RouterBackward{.probabilities = probabilities_d,
                                  .log_sum_exp = log_sum_exp_d,
                                  .chosen = chosen_d,
                                  .experts = experts_d,
                                  .choice_fractions = fractions_d,
                                  .sequence_offsets = offsets_d,
                                  .real_tokens = real_d,
                                  .d_gates = d_gates_d,
                                  .k = c.k,
                                  .balance_counts = c.counts,
                                  .balance_scale = balance_d,
                                  .z_scale = z_d,
                                  .d_logits = d_logits_d},
                   {&d_logits_d});
  return d_logits;
}

}  // namespace orchard::testing
