// The data of one stage: layout, packing plan, held-out plan and the loader of this rank.
#pragma once

#include <memory>

#include "data/batch_builder.h"
#include "data/held_out.h"
#include "data/loader.h"
#include "data/step_plan.h"
#include "data/training_set.h"
#include "models/flops.h"
#include "train/run_config.h"

namespace orchard {

// How the stage fills its sequences.
PackingOptions packing_options(const RunConfig& run, const StageConfig& stage);

struct LoaderOptions {
  std::int64_t first_step = 1;
  int rank = 0, ranks = 1;  // whose micro-batches: see StepPlan::of_rank
  PictureContent pictures = PictureContent::whole;
  std::function<void(const BadSample&)> on_bad;
};

class StageData {
 public:
  // `set` must outlive it. Categories that the stage's mixture does not name are left out, of
  // validation too. `micro_batch`: sequences of a forward pass; steps need a divisor of the stage's
  // global batch.
  StageData(const TrainingSet& set, const RunConfig& run, const StageConfig& stage,
            std::int64_t micro_batch);
  StageData(const StageData&) = delete;
  StageData& operator=(const StageData&) = delete;

  // What step number `step` (from 1) consumes, for all ranks.
  StepPlan step_plan(std::int64_t step);
  // What the first step makes the model compute, over all ranks: to balance a pipeline with, always
  // alike, so that a resumed run is cut as it was.
  Workload first_workload();
  // Of the first step's micro-batches the one whose pictures are nearest the mean, without their
  // contents: to time the model with, always the same.
  MicroBatch typical_batch();
  // The rank's micro-batches in order, prepared on a thread of their own.
  std::unique_ptr<PrefetchingLoader> make_loader(LoaderOptions options);
  // A builder for validation: `device` is a CPU's.
  BatchBuilder make_builder(Device& device, std::function<void(const BadSample&)> on_bad,
                            PictureContent pictures = PictureContent::whole) const;

  std::int64_t micro_batch() const { return shape_.micro_sequences; }
  const SampleLayout& layout() const { return layout_; }
  const HeldOutPlan& held_out() const { return held_out_; }
  // Shares of the mixture and what the packing leaves out, for the log.
  std::string report() const { return plan_.report(); }

 private:
  const TrainingSet& set_;
  std::int64_t patch_;
  BatchShape shape_;
  SampleLayout layout_;
  PackingPlan plan_;
  HeldOutPlan held_out_;
};

// One line to standard error.
void tell_bad(const BadSample& bad);

}  // namespace orchard
