// How a stage of the recipe cuts the model into pipeline stages: by counted FLOPs, or by times that
// are taken when it begins and kept in the run folder, so that a resume has the same cut.
#pragma once

#include <functional>
#include <string>

#include "train/link_times.h"
#include "train/run_config.h"

namespace orchard {

struct StageCutting {
  const RunConfig& run;
  const StageConfig& stage;
  const ModelConfig& model;  // the stage's
  Workload work;             // that FLOPs are counted for
  std::string setting;       // see LinkTimes
  // Takes the times: all ranks call it together and get the same.
  std::function<CostByKind()> time;
};

struct StageCut {
  PipelineStages stages;
  std::vector<LinkCost> costs;     // of every link; none without a pipeline
  std::vector<LinkHalves> halves;  // likewise
  PipelineBalance costs_are = PipelineBalance::counted;
  std::string origin;  // for the log: "balanced by their FLOPs"
};

// All ranks of `world` call it together and get the same. The first one reads and writes the times;
// times of another setting are taken anew.
StageCut cut_stage(const StageCutting& cutting, Communicator& world);

}  // namespace orchard
