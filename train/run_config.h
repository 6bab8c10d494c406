// Everything that defines a run, typed. launch/ fills it from the command line, the environment, a
// recipe and defaults; the trainer reads nothing else.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "data/marks.h"
#include "data/sample_layout.h"
#include "data/tiling.h"
#include "kernels/gpu/gpu_properties.h"
#include "models/config.h"
#include "parallel/expert_dispatcher.h"
#include "parallel/sharding.h"
#include "train/graphs.h"
#include "train/optimizer.h"
#include "train/pipeline_cut.h"

namespace orchard {

struct StageConfig {
  int number = 1;
  std::int64_t steps = 0;
  std::int64_t global_batch = 0;     // sequences of an optimizer step, over all ranks
  std::int64_t sequence_length = 0;  // rows of a packed sequence, visual tokens included
  std::int64_t side = 0;           // pixels a side of a tile in this stage: the vision tower's side
  std::int64_t max_pictures = 16;  // of a packed sequence
  TilingOptions tiling;            // its side is the stage's
  MarkStyle marks = MarkStyle::index;
  std::string mixture;  // a named mixture of data/mixture.h
  TargetPolicy targets = TargetPolicy::text;
  OptimizerConfig optimizer;
  double peak_lr = 0;  // 0: the learning-rate law at the dense backbone's size
  std::int64_t warmup = 0;
  double final_lr_fraction = 0;
};

// How data travels between the devices of ranks.
enum class DeviceTransport {
  automatic,  // of GPUs over NCCL, but through host memory where ranks share one
  host,       // through host memory, whatever there is
};

struct RunConfig {
  ModelConfig
      model;  // vision.side is overridden by the stage's; vocabulary by the tokenizer's, where 0
  Layout layout;
  SequenceParallel sequence_parallel = SequenceParallel::yes;
  PipelineOptions pipeline;
  ExpertDispatchOptions experts;
  std::vector<StageConfig> stages;
  DeviceKind device = DeviceKind::cpu;  // where the model lives
  GpuArch simt_arch = GpuArch::sm_80;   // whose kernels an emulated GPU runs
  DeviceTransport transport = DeviceTransport::automatic;
  DType dtype = DType::f32;
  Graphs graphs = Graphs::no;  // no GPU has shown that they gain time
  std::uint64_t seed = 1;
  double init_scale = 1;                // of the initial weights' standard deviations
  std::int64_t micro_batch = 1;         // sequences of one forward pass
  std::int64_t validate_every = 0;      // steps; 0: only at the start and the end of a stage
  std::int64_t validation_samples = 0;  // held-out samples of each category; 0: all
  std::int64_t checkpoint_every = 0;    // steps; 0: only at the end of a stage
  std::int64_t keep_checkpoints = 2;    // the newest of a stage, the final one apart
  std::int64_t hang_timeout = 600;  // seconds that a rank or an operation may give no sign of life
  std::filesystem::path training_set;
  std::filesystem::path run_folder;
};

}  // namespace orchard
