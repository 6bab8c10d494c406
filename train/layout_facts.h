// What a run demands of its layout.
#pragma once

#include "parallel/layout.h"
#include "train/run_config.h"

namespace orchard {

// `model` is the stage's, with what the training set decides. A vocabulary of 0 is not known yet and
// demands nothing.
LayoutFacts layout_facts(const RunConfig& run, const StageConfig& stage, const ModelConfig& model);

}  // namespace orchard
