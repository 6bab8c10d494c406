// The losses of a step: read back from the device micro-batch by micro-batch, and added up over the
// ranks at its end.
#pragma once

#include <vector>

#include "kernels/device/host_memory.h"
#include "models/multimodal.h"

namespace orchard {

// What is known of one step over all ranks, from the packing plan, before it starts. Losses are
// divided by them, so that a gradient depends neither on the number of ranks nor on accumulation.
struct StepTotals {
  std::int64_t targets = 0;    // rows with a target
  std::int64_t real_rows = 0;  // rows that are not padding
  std::int64_t sequences = 0;
  MicroBatchSizes sizes = MicroBatchSizes::any;  // alike: in the whole step
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

class StepLosses {
 public:
  // All must outlive it.
  StepLosses(Device& device, const ParallelContext& ranks, const MultimodalModel& model)
      : device_(device), ranks_(ranks), model_(model) {}

  // Of a step with so many micro-batches on this rank.
  void begin(std::size_t micro_batches);

  // Queues copies of what forward of some links left of a micro-batch's losses to the host: backward
  // reuses their memory.
  void read_back(const Pass& pass, const MultimodalModel::Saved& saved, std::size_t micro_batch);

  // Once the stream has been synchronised; all ranks call it together. Throws Error on every rank unless
  // the loss over all of them is finite, naming the first rank whose own is not.
  LossReport collect(const StepTotals& totals) const;

 private:
  // Of one sparse layer; empty where another pipeline stage has it.
  struct LayerLosses {
    explicit LayerLosses(Device& device)
        : balance(HostAllocator<float>(device)),
          z(HostAllocator<float>(device)),
          counts(HostAllocator<std::int32_t>(device)) {}

    HostVector<float> balance, z;     // [sequences]
    HostVector<std::int32_t> counts;  // [2 · experts]
  };
  struct HostLosses {
    HostLosses(Device& device, std::size_t sparse_layers)
        : targets(HostAllocator<float>(device)), layers(sparse_layers, LayerLosses(device)) {}

    HostVector<float> targets;  // [padded targets]; empty without the head
    std::vector<LayerLosses> layers;
  };
  // This rank's loss, balance loss and z-loss, then the counts before and after capacity of every
  // sparse layer.
  std::vector<double> own_sums() const;
  void require_finite(double loss, double own) const;

  Device& device_;
  const ParallelContext& ranks_;
  const MultimodalModel& model_;
  std::vector<HostLosses> host_;  // of each micro-batch, and room for more
  std::size_t micro_batches_ = 0;
};

}  // namespace orchard
