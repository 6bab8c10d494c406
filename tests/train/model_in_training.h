// A model with what its training steps need, on any device, alone or on one of several ranks.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "train/step.h"

namespace orchard::testing {

class ModelInTraining {
 public:
  // `device` and `ranks` must outlive it.
  ModelInTraining(Device& device, const ParallelContext& ranks, const ModelConfig& config,
                  DType dtype, const StepOptions& options = {},
                  const OptimizerConfig& optimizer = {})
      : ranks_(ranks),
        stream_(device.make_stream()),
        store_(ranks.place()),
        model_(store_, config) {
    store_.allocate(device, *stream_, dtype, ParameterUse::training_on_shards);
    shards_.emplace(device, *stream_, ranks, store_);
    model_.prepare(device, *stream_);
    store_.initialise(*stream_, 1);
    optimizer_.emplace(device, *stream_, store_, optimizer, &*shards_);
    runner_.emplace(device, *stream_, ranks, store_, model_, &*shards_, options);
  }

  // The next step, with this rank's micro-batches.
  StepReport step(std::span<const MicroBatch> mine, const StepTotals& totals,
                  double learning_rate) {
    return runner_->train(mine, totals, *optimizer_, learning_rate, ++steps_);
  }

  // All values and masters of this rank, and its optimizer's state, bit by bit.
  std::vector<std::byte> state() {
    std::vector<ConstTensor> parts{store_.flat_values()};
    for (const Parameter& p : store_.parameters())
      if (p.owned.master) parts.push_back(p.owned.master);  // other ranks may own all of it
    for (const Optimizer::NamedShard& s : optimizer_->state())
      if (s.tensor) parts.push_back(s.tensor);
    std::size_t size = 0;
    for (const ConstTensor& part : parts) size += part.size_bytes();
    std::vector<std::byte> bits(size);
    std::byte* next = bits.data();
    for (const ConstTensor& part : parts) {
      stream_->copy(Tensor(next, part.dtype(), part.shape(), DeviceKind::cpu), part);
      next += part.size_bytes();
    }
    stream_->synchronize();
    return bits;
  }

  const ParallelContext& ranks() const { return ranks_; }
  Stream& stream() { return *stream_; }
  StepRunner& runner() { return *runner_; }

 private:
  const ParallelContext& ranks_;
  std::unique_ptr<Stream> stream_;
  ParameterStore store_;
  MultimodalModel model_;
  std::optional<FlatShards> shards_;
  std::optional<Optimizer> optimizer_;
  std::optional<StepRunner> runner_;
  std::int64_t steps_ = 0;
};

}  // namespace orchard::testing
