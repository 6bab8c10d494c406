// Runs the stages of a recipe: loads or initialises weights, trains, validates, writes checkpoints.
#pragma once

#include <optional>

#include "comm/communicator.h"
#include "train/observer.h"
#include "train/run_config.h"

namespace orchard {

enum class Resume : std::uint8_t {
  refuse,       // a run folder that already holds checkpoints is an error: nothing is overwritten by accident
  from_latest,  // continue after the newest checkpoint; start afresh where there is none
};

struct TrainOptions {
  Resume resume = Resume::refuse;
  int only_stage = 0;                     // 0: all stages of the recipe
  std::filesystem::path initial_weights;  // a checkpoint to start the first stage from; empty: random
  std::int64_t stop_after_steps = 0;      // ends cleanly after so many steps of this call, checkpoint written; 0: never
};

// The weights of a stage's end, in the run folder: checkpoints/stage<k>.h5. Those on the way are
// checkpoints/stage<k>-step<n>.h5, with the optimizer's state.
class CheckpointFolder {
 public:
  explicit CheckpointFolder(const std::filesystem::path& run_folder);

  std::filesystem::path at_step(int stage, std::int64_t step) const;
  std::filesystem::path final_of(int stage) const;
  // The newest readable checkpoint by (stage, step), if any.
  std::optional<std::filesystem::path> latest() const;
  // Removes all but the newest `keep` checkpoints of a stage's way, and its end's not.
  void prune(int stage, std::int64_t keep) const;

 private:
  std::filesystem::path folder_;
};

// Collective: every rank calls it with the same arguments. The observer hears rank 0 only.
void train(const RunConfig& run, const TrainOptions& options, Device& device, Communicator& ranks, Observer& observer);

// The dimensions of a model as JSON text, as checkpoints carry them, and back.
std::string model_json(const ModelConfig& model);
ModelConfig model_from_json(const std::string& text);

}  // namespace orchard
