// One optimizer step: micro-batches forward and backward in order, one reduction of the gradients,
// one update.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "models/multimodal.h"
#include "parallel/sharded_step.h"
#include "train/optimizer.h"
#include "train/upload.h"

namespace orchard {

// Totals over all ranks of one step, known from the packing plan before it starts. Losses are
// divided by them, so that a gradient depends neither on the number of ranks nor on accumulation.
struct StepTotals {
  std::int64_t targets = 0;    // rows with a target
  std::int64_t real_rows = 0;  // rows that are not padding
  std::int64_t sequences = 0;
};

// Where a step's time went, in seconds of this rank.
struct PhaseSeconds {
  double forward = 0, backward = 0, reduce = 0, optimizer = 0;
};

// Losses of a step, or of an evaluation, over all ranks.
struct LossReport {
  double loss = 0;          // mean cross-entropy of the target tokens
  double balance_loss = 0;  // mean over sequences, summed over layers, without its weight
  double z_loss = 0;        // mean over real tokens, summed over layers, without its weight
  // Share of the choices that each expert got, before capacity, by sparse layer; of those that it
  // got, the share that its capacity dropped; and of all choices of the layer. train/expert_load.h
  // has what follows from the shares.
  std::vector<std::vector<double>> expert_load, expert_dropped;
  std::vector<double> dropped;
};

struct StepReport {
  LossReport losses;
  double gradient_norm = 0;
  PhaseSeconds seconds;
};

// Runs micro-batches and keeps what they leave behind until the losses are collected. Everything
// that a step needs is allocated on its first calls and reused.
class StepRunner {
 public:
  // All arguments must outlive the runner. All ranks of a pipeline stage make theirs together.
  // Without shards it only evaluates.
  StepRunner(Device& device, Stream& stream, const ParallelContext& ranks, ParameterStore& store,
             const MultimodalModel& model, const FlatShards* shards = nullptr,
             Overlap overlap = Overlap::yes, const ExpertDispatchOptions& experts = {});

  // `micro_batches` are those of this rank's place in the data group. Their gradients, reduced over
  // ranks, are left in the rows that this rank owns.
  // Throws Error when the loss is not finite, on every rank. `replay` is the routing of each
  // micro-batch, for comparisons in which no expert may change places with another; without it
  // routers choose.
  StepReport accumulate(std::span<const MicroBatch> micro_batches, const StepTotals& totals,
                        std::span<const RoutingReplay> replay = {});

  // accumulate, then the optimizer's update.
  StepReport train(std::span<const MicroBatch> micro_batches, const StepTotals& totals,
                   Optimizer& optimizer, double learning_rate, std::int64_t step,
                   std::span<const RoutingReplay> replay = {});

  // Forward only. Losses of each target row in batch order (see MicroBatch::targets), of this rank
  // alone.
  std::vector<float> evaluate(const MicroBatch& batch);

  // Whether ranks of different places in the data group hold experts for each other: then they
  // evaluate as many micro-batches as each other.
  bool evaluates_together() const;

  // Brings tokens to their experts; null in a model without.
  ExpertDispatcher* dispatcher() const { return dispatcher_.get(); }
  const Arena& arena() const { return arena_; }

 private:
  LossScales scales(const StepTotals& totals) const;
  // Queues copies of a micro-batch's losses to the host: backward reuses their memory.
  void read_back(const Pass& pass, const MultimodalModel::Saved& saved);
  LossReport collect(const StepTotals& totals);
  // Throws Error on every rank unless the loss over all of them is finite, naming the first rank
  // whose own is not.
  void require_finite_loss(double loss) const;
  // The same of the gradient norm, naming the first rank and parameter too.
  void require_finite_norm(double norm, std::int64_t step) const;

  Stream& stream_;
  const ParallelContext& ranks_;
  ParameterStore& store_;
  const MultimodalModel& model_;
  Overlap overlap_;
  std::optional<GradientReducer> reducer_;
  std::optional<ValueGatherer> gatherer_;
  std::vector<FlatRange> counted_;  // of the gradient norm
  std::unique_ptr<ExpertDispatcher> dispatcher_;
  Arena arena_;
  BatchUploader uploader_;

  struct HostLosses {
    std::vector<float> targets;                     // [padded targets]
    std::vector<std::vector<float>> balance, z;     // [layer][sequences]
    std::vector<std::vector<std::int32_t>> counts;  // [layer][2 · experts]
  };
  std::vector<HostLosses> host_;  // of each micro-batch of the step
  std::size_t used_ = 0;          // micro-batches of the step in progress
  double own_loss_ = 0;           // of this rank's targets, in the last step
  Buffer squares_;                // workspace of the gradient norm
};

}  // namespace orchard
