#include "data/step_plan.h"

#include "kernels/core/error.h"

namespace orchard {

std::span<const MicroBatchPlan> StepPlan::of_rank(int rank, int ranks) const {
  require(rank >= 0 && rank < ranks, "data-parallel rank {} of {} does not exist", rank, ranks);
  const auto count = micro_batches.size(), parts = static_cast<std::size_t>(ranks);
  require(count % parts == 0,
          "{} micro-batches do not divide among {} data-parallel ranks: choose a global batch that "
          "is a multiple of micro-batch times ranks",
          count, ranks);
  return std::span(micro_batches)
      .subspan(count / parts * static_cast<std::size_t>(rank), count / parts);
}

MicroBatchPlan describe(std::span<const PackedSequence> sequences, std::int64_t first_sequence,
                        std::int64_t length) {
  const auto count = static_cast<std::int64_t>(sequences.size());
  MicroBatchPlan plan{.first_sequence = first_sequence, .sequences = count, .rows = count * length};
  for (const PackedSequence& sequence : sequences) {
    plan.real_rows += sequence.rows;
    plan.tiles += sequence.tiles;
    plan.targets += sequence.targets;
  }
  return plan;
}

std::int64_t first_sequence_of(std::int64_t n, std::int64_t start, const BatchShape& shape,
                               int rank, int ranks) {
  const std::int64_t per_rank = shape.global_sequences / shape.micro_sequences / ranks;
  require(per_rank * ranks * shape.micro_sequences == shape.global_sequences,
          "a global batch of {} sequences does not divide into micro-batches of {} on {} ranks",
          shape.global_sequences, shape.micro_sequences, ranks);
  const std::int64_t step = n / per_rank, micro = rank * per_rank + n % per_rank;
  return start + step * shape.global_sequences + micro * shape.micro_sequences;
}

StepPlan plan_step(PackingPlan& plan, std::int64_t first_sequence, const BatchShape& shape) {
  require(shape.micro_sequences >= 1 && shape.global_sequences >= 1 &&
              shape.global_sequences % shape.micro_sequences == 0,
          "a global batch of {} sequences is not made of micro-batches of {}",
          shape.global_sequences, shape.micro_sequences);
  StepPlan step{.next_sequence = first_sequence + shape.global_sequences};
  for (std::int64_t n = first_sequence; n < step.next_sequence; n += shape.micro_sequences) {
    const std::vector<PackedSequence> sequences = plan.sequences(n, shape.micro_sequences);
    const MicroBatchPlan& micro =
        step.micro_batches.emplace_back(describe(sequences, n, plan.layout().options().length));
    step.real_rows += micro.real_rows;
    step.tiles += micro.tiles;
    step.targets += micro.targets;
  }
  return step;
}

}  // namespace orchard
