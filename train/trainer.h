// Runs the stages of a recipe: loads or initialises weights, trains, validates, writes checkpoints.
#pragma once

#include <filesystem>
#include <string>

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

// Throws Error when `run` cannot continue exactly where its newest checkpoint stands: of another
// model, training set's tokenizer, seed or batch, or cut short; with no checkpoint it may begin.
// Says what to do. train() checks this itself; who changes the run folder first asks before.
void check_resumable(const RunConfig& run, const std::string& tokenizer_hash);

// Collective: every rank calls it with the same arguments. The observer hears rank 0 only.
void train(const RunConfig& run, const TrainOptions& options, Device& device, Communicator& ranks,
           Observer& observer);

}  // namespace orchard
