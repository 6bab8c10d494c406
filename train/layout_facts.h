// What a run demands of its layout.
#pragma once

#include "parallel/layout.h"
#include "train/run_config.h"

namespace orchard {

// Of all stages. `model` is any stage's, with what the training set decides: what a layout cuts is the
// same in each. A vocabulary of 0 is not known yet and demands nothing.
LayoutFacts layout_facts(const RunConfig& run, const ModelConfig& model);

// Sequences of one forward pass of the stage in a job of so many ranks: run.micro_batch, or the next
// smaller number that divides a replica's share of the global batch.
std::int64_t micro_batch_of(const RunConfig& run, const StageConfig& stage, int ranks);

}  // namespace orchard
