// The model that a stage of the recipe trains.
#pragma once

#include "data/training_set.h"
#include "train/run_config.h"

namespace orchard {

// The run's model with what the stage and the training set decide. Throws Error where they do not fit
// it.
ModelConfig stage_model(const RunConfig& run, const StageConfig& stage, const TrainingSet& set);

}  // namespace orchard
