// The trained model that eval, generate and score ask: a checkpoint, and the recipe that says how
// its pictures are split and its prompts are marked.
#pragma once

#include <memory>

#include "data/tokenizer.h"
#include "launch/run_arguments.h"
#include "train/inference.h"

namespace orchard {

// --checkpoint, --stage and the options of a run.
void add_model_arguments(CommandLine& line);

struct AskedModel {
  RunConfig run;
  StageConfig stage;  // of the checkpoint, or as --stage says
  std::filesystem::path checkpoint;
  std::filesystem::path run_folder;
};

// The checkpoint is --checkpoint or the newest of --run-folder; the recipe is --recipe or the
// resolved.ini of the run. Throws ConfigurationError where either is missing, they are of
// different models, or the layout is impossible for so many ranks. One rank asks the whole model
// whatever the run's layout was, unless one is given on the command line or in the environment.
AskedModel find_model(const CommandLine& line, int ranks);

// `longest`: rows of the longest document it will see, answers included. All ranks call it.
std::unique_ptr<InferenceModel> load_model(const AskedModel& asked, Device& device,
                                           const ParallelContext& ranks, std::int64_t longest);

// The tokenizer of the run's training set. Throws Error when the model was trained with another.
Tokenizer open_tokenizer(const AskedModel& asked);

}  // namespace orchard
