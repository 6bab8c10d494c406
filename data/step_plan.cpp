#include "data/step_plan.h"

#include <algorithm>

#include "kernels/core/error.h"

namespace orchard {
namespace {

// Of those that have room, the first with the fewest tiles.
MicroBatchPlan& emptiest(std::span<MicroBatchPlan> micro_batches, std::int64_t room) {
  MicroBatchPlan* best = nullptr;
  for (MicroBatchPlan& micro : micro_batches) {
    const bool full = static_cast<std::int64_t>(micro.sequences.size()) == room;
    if (!full && (!best || micro.tiles < best->tiles)) best = &micro;
  }
  return *best;
}

}  // namespace

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

StepPlan plan_step(PackingPlan& plan, std::int64_t first_sequence, const BatchShape& shape) {
  require(shape.micro_sequences >= 1 && shape.global_sequences >= 1 &&
              shape.global_sequences % shape.micro_sequences == 0,
          "a global batch of {} sequences is not made of micro-batches of {}",
          shape.global_sequences, shape.micro_sequences);
  StepPlan step{.next_sequence = first_sequence + shape.global_sequences};
  step.micro_batches.resize(
      static_cast<std::size_t>(shape.global_sequences / shape.micro_sequences));
  std::vector<PackedSequence> sequences = plan.sequences(first_sequence, shape.global_sequences);
  std::stable_sort(sequences.begin(), sequences.end(),
                   [](const auto& a, const auto& b) { return a.tiles > b.tiles; });
  for (PackedSequence& sequence : sequences) {
    MicroBatchPlan& micro = emptiest(step.micro_batches, shape.micro_sequences);
    micro.rows += plan.layout().options().length;
    micro.real_rows += sequence.rows;
    micro.tiles += sequence.tiles;
    micro.targets += sequence.targets;
    step.real_rows += sequence.rows;
    step.tiles += sequence.tiles;
    step.targets += sequence.targets;
    micro.sequences.push_back(std::move(sequence));
  }
  return step;
}

}  // namespace orchard
