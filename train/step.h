// One optimizer step: micro-batches forward and backward in order, one reduction of the gradients,
// one update. All of it is queued before the host waits for the device, once, and looks at what came of
// it.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "parallel/gradient_norm.h"
#include "parallel/sharded_step.h"
#include "train/graphs.h"
#include "train/optimizer.h"
#include "train/pass_graphs.h"
#include "train/pipeline_step.h"
#include "train/step_scales.h"

namespace orchard {

struct StepReport {
  LossReport losses;
  double gradient_norm = 0;
  PhaseSeconds seconds;
};

struct StepOptions {
  Overlap overlap = Overlap::yes;
  ExpertDispatchOptions experts = {};
  // yes: not in pipelines, whose schedules put messages between the passes of a micro-batch, nor where
  // the host takes part in a pass's messages: experts on several ranks need a capacity, and ranks'
  // devices must send by themselves. Of several ranks the last micro-batch of a step, whose gradients
  // are sent while backward runs, is no graph; without overlap it is one, too.
  Graphs graphs = Graphs::no;
};

// Runs micro-batches and keeps what they leave behind until the losses are collected. Everything
// that a step needs is allocated on its first calls and reused.
class StepRunner {
 public:
  // All arguments must outlive the runner. All ranks of a pipeline stage make theirs together.
  // Without shards it only evaluates.
  StepRunner(Device& device, Stream& stream, const ParallelContext& ranks, ParameterStore& store,
             const MultimodalModel& model, const FlatShards* shards = nullptr,
             const StepOptions& options = {});

  // `micro_batches` are those of this rank's place in the data group: all stages of a pipeline have
  // the same, but the contents of pictures need only be where picture_content says. Their gradients, reduced over ranks, are left in the rows that this rank owns.
  // Throws Error when the loss is not finite, on every rank. `replay` is the routing of each
  // micro-batch, for comparisons in which no expert may change places with another; without it
  // routers choose.
  StepReport accumulate(std::span<const MicroBatch> micro_batches, const StepTotals& totals,
                        std::span<const RoutingReplay> replay = {});

  // accumulate, and the optimizer's update. Throws Error on every rank when the loss or the norm of the
  // gradients is not finite. By then the step is over: where the norm is not, nothing has been updated;
  // where the loss alone is not, weights have been, by gradients that are finite.
  StepReport train(std::span<const MicroBatch> micro_batches, const StepTotals& totals,
                   Optimizer& optimizer, double learning_rate, std::int64_t step,
                   std::span<const RoutingReplay> replay = {});

  // Forward only. Losses of each target row in batch order (see MicroBatch::targets), of this rank's
  // micro-batch alone, on every stage of its pipeline. Pictures as in accumulate.
  std::vector<float> evaluate(const MicroBatch& batch);

  // Whether ranks of different places in the data group hold experts for each other: then they
  // evaluate as many micro-batches as each other.
  bool evaluates_together() const;

  const ParallelContext& ranks() const { return ranks_; }
  // Brings tokens to their experts; null in a model without.
  ExpertDispatcher* dispatcher() const { return dispatcher_.get(); }
  const Arena& arena() const { return arena_; }
  // Null without Graphs::yes.
  const PassGraphs* graphs() const { return graphs_ ? &*graphs_ : nullptr; }

 private:
  // The group whose messages passes send, and graphs hold; null where they send none. Throws Error
  // where there are some that no graph can hold.
  Communicator* group_of_passes() const;
  // Queues forward, backward and the reduction of the gradients.
  void queue_gradients(std::span<const MicroBatch> micro_batches, const StepTotals& totals,
                       std::span<const RoutingReplay> replay, PhaseSeconds& seconds);
  // Waits for all that is queued, and looks at the losses.
  void end(StepReport& report, const StepTotals& totals) const;
  // Forward and backward of every micro-batch, one after the other, as without a pipeline.
  void run_in_turn(const StepWork& work, PhaseSeconds& seconds);
  // Throws Error on every rank unless the norm is finite, naming the first rank whose own gradients
  // are not, and the parameter.
  void require_finite_norm(double norm, std::int64_t step) const;

  Stream& stream_;
  const ParallelContext& ranks_;
  ParameterStore& store_;
  const MultimodalModel& model_;
  Overlap overlap_;
  std::optional<GradientReducer> reducer_;
  std::optional<ValueGatherer> gatherer_;
  std::optional<GradientNorm> norm_;
  std::unique_ptr<ExpertDispatcher> dispatcher_;
  Arena arena_;
  BatchUploader uploader_;
  StepLosses losses_;
  StepScales scales_;
  std::optional<PassGraphs> graphs_;
  std::optional<PipelineStep> pipeline_;
};

}  // namespace orchard
