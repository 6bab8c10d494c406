// Optimizers over a ParameterStore: AdamW and AdaFactor, and the state they carry between steps.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "parallel/sharded_step.h"
#include "parallel/tensor_shard.h"
#include "train/optimizer_state.h"
#include "train/spread_adafactor.h"

namespace orchard {

class Optimizer {
 public:
  // Allocates zeroed state for the rows that this rank owns. Without `shards` nobody shares the
  // store's parameters.
  Optimizer(Device& device, Stream& stream, ParameterStore& store, const OptimizerConfig& config,
            const FlatShards* shards = nullptr);

  // Queues the update of the owned rows of every parameter from their gradients, which are multiplied by
  // `gradient_scale`, f32 [1] on the device (GradientNorm::scale): where it is not finite, nothing
  // changes. `step` counts from 1. `gatherer` is told of every bucket that is done.
  void update(Stream& stream, double learning_rate, ConstTensor gradient_scale, std::int64_t step,
              ValueGatherer* gatherer = nullptr);

  // What the global norm of the gradients is to be at most; 0: whatever it is.
  double clip_norm() const { return config_.kind == OptimizerKind::adamw ? config_.clip_norm : 0; }

  // The state by name, for checkpoints: "m/<parameter>" and "v/<parameter>" for AdamW; "v/...", or
  // "v_row/..." and "v_col/..." for AdaFactor. f32. The same names in the same order on all ranks;
  // shards are empty where a rank has nothing.
  struct NamedShard {
    std::string name;
    TensorShard shard;
    Tensor tensor;
    Counted counted = Counted::yes;
  };
  std::vector<NamedShard> state() const;

  const OptimizerConfig& config() const { return config_; }

 private:
  void allocate(Device& device, Stream& stream);
  void update_rows(Stream& stream, const Parameter& p, const OptimizerStep& step) const;
  const OptimizerSlots& slots_of(const Parameter& p) const { return slots_[numbers_[p.declared]]; }

  ParameterStore& store_;
  OptimizerConfig config_;
  const FlatShards* shards_;
  std::optional<SpreadAdaFactor> spread_;
  Buffer memory_;
  std::vector<OptimizerSlots> slots_;  // of each parameter that is here, in store order
  std::vector<std::size_t> numbers_;   // of a declared parameter, its place in slots_
};

}  // namespace orchard
