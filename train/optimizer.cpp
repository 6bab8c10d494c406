#include "train/optimizer.h"

#include <algorithm>

#include "kernels/optimizer/optimizer.h"

namespace orchard {
namespace {

// Elements of a slot, rounded up so that every slot starts on a cache line.
std::int64_t padded(std::int64_t elements) {
  return (elements + 15) / 16 * 16;
}

Tensor bf16_copy(const ParameterStore& store, const Parameter& p) {
  return store.dtype() == DType::bf16 ? p.value : Tensor();
}

}  // namespace

Optimizer::Optimizer(Device& device, Stream& stream, ParameterStore& store,
                     const OptimizerConfig& config)
    : store_(store), config_(config) {
  std::int64_t elements = 0;
  for (const Parameter& p : store.parameters()) {
    const Shape shape = p.shape();
    if (config.kind == OptimizerKind::adamw) {
      elements += 2 * padded(shape.numel());
    } else if (is_factored(p)) {
      elements += padded(shape[0]) + padded(shape[1]);
    } else {
      elements += padded(shape.numel());
    }
  }
  memory_ = device.allocate(static_cast<std::size_t>(elements) * sizeof(float));
  const Tensor all = memory_.tensor(DType::f32, {elements});
  stream.fill_zero(all);
  std::int64_t next = 0;
  const auto take = [&](const Shape& shape) {
    const Tensor slot = all.slice(next, shape.numel()).reshape(shape);
    next += padded(shape.numel());
    return slot;
  };
  for (const Parameter& p : store.parameters()) {
    Slots& slots = slots_.emplace_back();
    const Shape shape = p.shape();
    if (config.kind == OptimizerKind::adamw) {
      slots.m = take(shape);
      slots.v = take(shape);
    } else if (is_factored(p)) {
      slots.v_row = take({shape[0]});
      slots.v_col = take({shape[1]});
    } else {
      slots.v = take(shape);
    }
  }
}

// Of the whole parameter: how it is cut must not change how it is optimised.
bool Optimizer::is_factored(const Parameter& p) const {
  const Shape& shape = p.spec.shape;
  return shape.rank() == 2 && std::min(shape[0], shape[1]) >= config_.factor_threshold;
}

void Optimizer::update(Stream& stream, double learning_rate, double gradient_norm,
                       std::int64_t step) {
  double scale = 1;
  if (config_.kind == OptimizerKind::adamw && config_.clip_norm > 0 &&
      gradient_norm > config_.clip_norm) {
    scale = config_.clip_norm / gradient_norm;
  }
  std::size_t i = 0;
  for (Parameter& p : store_.parameters()) {
    const Slots& slots = slots_[i++];
    if (config_.kind == OptimizerKind::adamw) {
      const Shape flat{p.shape().numel()};
      const Tensor copy = bf16_copy(store_, p);
      const bool decays = p.spec.weight_decay == WeightDecay::yes;
      run(stream, AdamW{.weights = p.master.reshape(flat),
                        .gradients = p.gradient.reshape(flat),
                        .m = slots.m.reshape(flat),
                        .v = slots.v.reshape(flat),
                        .copy = copy ? copy.reshape(flat) : Tensor(),
                        .gradient_scale = static_cast<float>(scale),
                        .lr = static_cast<float>(learning_rate),
                        .beta1 = static_cast<float>(config_.beta1),
                        .beta2 = static_cast<float>(config_.beta2),
                        .epsilon = static_cast<float>(config_.epsilon),
                        .weight_decay = decays ? static_cast<float>(config_.weight_decay) : 0.0f,
                        .step = step});
    } else {
      run(stream, AdaFactor{.weights = p.master,
                            .gradients = p.gradient,
                            .v_row = slots.v_row,
                            .v_col = slots.v_col,
                            .v = slots.v,
                            .copy = bf16_copy(store_, p),
                            .lr = static_cast<float>(learning_rate),
                            .clip_threshold = static_cast<float>(config_.block_clip),
                            .step = step});
    }
  }
}

std::vector<Optimizer::NamedTensor> Optimizer::state() const {
  std::vector<NamedTensor> state;
  std::size_t i = 0;
  for (const Parameter& p : store_.parameters()) {
    const Slots& slots = slots_[i++];
    const auto add = [&](const char* prefix, const Tensor& tensor) {
      if (tensor) state.push_back({prefix + p.spec.name, tensor});
    };
    add("m/", slots.m);
    add("v/", slots.v);
    add("v_row/", slots.v_row);
    add("v_col/", slots.v_col);
  }
  return state;
}

}  // namespace orchard
