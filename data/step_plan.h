// What a global batch holds, micro-batch by micro-batch, before any sample is read. Every rank
// knows it for all ranks: the loss is divided by the step's targets, pipelines size their messages,
// and encoders balance their tiles with it.
#pragma once

#include <span>
#include <vector>

#include "data/packing.h"

namespace orchard {

struct BatchShape {
  std::int64_t global_sequences = 1;
  std::int64_t micro_sequences = 1;
};

struct MicroBatchPlan {
  std::vector<PackedSequence> sequences{};
  std::int64_t rows = 0;       // padding included
  std::int64_t real_rows = 0;  // tokens and visual rows
  std::int64_t tiles = 0;
  std::int64_t targets = 0;  // as planned: a sample that turns out bad still counts
  bool operator==(const MicroBatchPlan&) const = default;
};

struct StepPlan {
  std::vector<MicroBatchPlan> micro_batches{};
  std::int64_t real_rows = 0;
  std::int64_t tiles = 0;
  std::int64_t targets = 0;
  std::int64_t next_sequence = 0;  // what the run resumes from once the step is done

  // The consecutive micro-batches of one of `ranks` data-parallel ranks. Throws when they do not
  // divide evenly.
  std::span<const MicroBatchPlan> of_rank(int rank, int ranks) const;
};

// Of the plan's sequences from `first_sequence` on. They are dealt to the micro-batches so that
// these hold about as many tiles each: ranks wait for the slowest. The same for any number of ranks.
StepPlan plan_step(PackingPlan& plan, std::int64_t first_sequence, const BatchShape& shape);

}  // namespace orchard
