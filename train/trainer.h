// Runs the stages of a recipe: loads or initialises weights, trains, validates, writes checkpoints.
#pragma once

#include <filesystem>

#include "comm/communicator.h"
#include "train/observer.h"
#include "train/run_config.h"

namespace orchard {

enum class Resume : std::uint8_t {
  refuse,  // a run folder that already holds checkpoints is an error: nothing is lost by accident
  from_latest,  // continue after the newest checkpoint; start afresh where there is none
};

struct TrainOptions {
  Resume resume = Resume::refuse;
  int only_stage = 0;                     // 0: all stages of the recipe
  std::filesystem::path initial_weights;  // checkpoint that the first stage starts from; empty: as
                                          // the stage before left them, or random
  std::int64_t stop_after_steps =
      0;  // end this call cleanly after so many steps, checkpoint written; 0: never
};

// Collective: every rank calls it with the same arguments. The observer hears rank 0 only.
void train(const RunConfig& run, const TrainOptions& options, Device& device, Communicator& ranks,
           Observer& observer);

}  // namespace orchard
