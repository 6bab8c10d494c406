// The micro-batches of a step through the stages of a pipeline.
#pragma once

#include <deque>
#include <map>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "parallel/pipeline_engine.h"
#include "train/step_losses.h"
#include "train/upload.h"

namespace orchard {

// What runs micro-batches, alone or in a pipeline. All of it outlives whoever holds this.
struct StepParts {
  Device& device;
  Stream& stream;
  const ParallelContext& ranks;
  const MultimodalModel& model;
  ExpertDispatcher* dispatcher = nullptr;  // null in a model without experts
};

// Where a step's time went, in seconds of this rank's host. A GPU works while the host goes on: there a
// phase is what it takes to queue it, and what the GPU does after that is all in `wait`.
struct PhaseSeconds {
  double forward = 0, backward = 0;
  double pipeline = 0;  // waiting for other stages, and moving what crosses them
  double reduce = 0;  // adding up gradients over ranks, what backward leaves of it, and their norm
  double optimizer = 0;
  double wait = 0;  // at the step's end, for the device, and for the other ranks' losses
};

// What all ranks of a pipeline know when a step starts; the sizes of their messages follow from it.
struct StepWork {
  std::span<const MicroBatch> micro_batches;  // of this rank's place in the data group
  LossScales scales;
  std::span<const RoutingReplay> replay;  // of each micro-batch, or empty: routers choose
  GradientListener* listener = nullptr;   // null: nobody wants to know before the end
  Overlap overlap = Overlap::yes;         // see Pass
  MicroBatchSizes sizes = MicroBatchSizes::any;
};

// This rank's stages. What a micro-batch saves at one of them has memory of its own: as many arenas
// as the schedule has micro-batches alive at once, which later steps of the same sizes reuse.
class PipelineStep final : private PipelineModel {
 public:
  // All must outlive it. The uploader's uploads are those of one step.
  PipelineStep(const StepParts& parts, BatchUploader& uploader, StepLosses& losses);

  // Runs the whole schedule. Losses have been read back, and the gradients of this rank's stages
  // have the share of every micro-batch, when the stream is done.
  void run(const StepWork& work, PhaseSeconds& seconds);

 private:
  // What one micro-batch keeps at one chunk from forward to the weight half.
  struct Keep {
    explicit Keep(Device& device) : arena(device) {}

    Arena arena;
    DeviceBatch batch;
    MultimodalModel::Saved saved;
    bool taken = false;
  };

  Message output_of(int stage, int micro_batch) const override;
  ConstTensor forward(int chunk, int micro_batch, ConstTensor input) override;
  void backward_input(int chunk, int micro_batch, ConstTensor d_output, Tensor d_input) override;
  void backward_weight(int chunk, int micro_batch) override;

  void prepare(std::size_t micro_batches);
  LinkRange links_of(int chunk) const;
  Keep& take(int chunk, int micro_batch);
  Keep& kept(int chunk, int micro_batch);
  Pass pass_of(Keep& keep, int micro_batch);
  void tell_final_gradients(Pass& pass, int chunk, int micro_batch);

  StepParts parts_;
  BatchUploader& uploader_;
  StepLosses& losses_;
  std::optional<PipelineEngine> engine_;  // for as many micro-batches as the last step had
  BackwardHalves halves_ = BackwardHalves::in_turn;  // as its schedule has them
  std::vector<std::deque<Keep>> keeps_;              // of each chunk
  std::map<std::pair<int, int>, Keep*> live_;        // by chunk and micro-batch

  const StepWork* work_ = nullptr;  // of the step in progress
  PhaseSeconds* seconds_ = nullptr;
  std::vector<DeviceBatch> counts_;  // of each micro-batch
  std::vector<int> ended_;           // micro-batches of each chunk whose weight half has run
};

}  // namespace orchard
