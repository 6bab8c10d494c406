// What optimizers remember between steps, and how they are configured.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>

#include "parallel/parameter.h"

namespace orchard {

enum class OptimizerKind : std::uint8_t { adamw, adafactor };

struct OptimizerConfig {
  OptimizerKind kind = OptimizerKind::adamw;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double epsilon = 1e-8;
  // Of parameters that decay: p -= lr · weight_decay · p. None: what the optimizer usually has.
  std::optional<double> weight_decay = {};
  double clip_norm = 1.0;   // global gradient norm, AdamW; 0: none
  double block_clip = 1.0;  // AdaFactor: largest rms of a block's update
  std::int64_t factor_threshold =
      128;  // AdaFactor: matrices with both sides at least this are factored

  // Of the learning rate that a step takes off the parameter.
  double decay_of(const ParameterSpec& spec) const {
    if (spec.weight_decay == WeightDecay::no) return 0;
    return weight_decay.value_or(kind == OptimizerKind::adamw ? 0.1 : 0);
  }

  // Of the whole parameter: how it is cut must not change how it is optimised.
  bool is_factored(const Shape& shape) const {
    return kind == OptimizerKind::adafactor && shape.rank() == 2 &&
           std::min(shape[0], shape[1]) >= factor_threshold;
  }
};

// Of one parameter's owned rows; those that the optimizer and the parameter's factoring call for.
// v_col has all columns of the whole parameter.
struct OptimizerSlots {
  Tensor m, v, v_row, v_col;
};

// One update.
struct OptimizerStep {
  double learning_rate = 0;
  ConstTensor gradient_scale;  // f32 [1], on the device: what gradients are multiplied by
  std::int64_t number = 1;     // from 1
};

}  // namespace orchard
