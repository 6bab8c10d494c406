// Optimizers over a ParameterStore: AdamW and AdaFactor, and the state they carry between steps.
#pragma once

#include <string>
#include <vector>

#include "parallel/parameter.h"

namespace orchard {

enum class OptimizerKind : std::uint8_t { adamw, adafactor };

struct OptimizerConfig {
  OptimizerKind kind = OptimizerKind::adamw;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double epsilon = 1e-8;
  double weight_decay = 0.1;  // AdamW, of parameters that decay: p -= lr · weight_decay · p
  double clip_norm = 1.0;     // global gradient norm, AdamW; 0: none
  double block_clip = 1.0;    // AdaFactor: largest rms of a block's update
  std::int64_t factor_threshold =
      128;  // AdaFactor: matrices with both sides at least this are factored
};

class Optimizer {
 public:
  // Allocates zeroed state on the device.
  Optimizer(Device& device, Stream& stream, ParameterStore& store, const OptimizerConfig& config);

  // Updates every parameter from its gradient, scaled down first if the global norm exceeds
  // clip_norm. `step` counts from 1.
  void update(Stream& stream, double learning_rate, double gradient_norm, std::int64_t step);

  // The state by name, for checkpoints: "m/<parameter>" and "v/<parameter>" for AdamW; "v/...", or
  // "v_row/..." and "v_col/..." for AdaFactor. f32.
  struct NamedTensor {
    std::string name;
    Tensor tensor;
  };
  std::vector<NamedTensor> state() const;

  const OptimizerConfig& config() const { return config_; }

 private:
  bool is_factored(const Parameter& p) const;

  ParameterStore& store_;
  OptimizerConfig config_;
  Buffer memory_;
  struct Slots {
    Tensor m, v, v_row, v_col;  // those that the optimizer and the parameter's factoring call for
  };
  std::vector<Slots> slots_;  // of each parameter, in store order
};

}  // namespace orchard
