#include "models/linear.h"

#include "kernels/elementwise/elementwise.h"

namespace orchard {

Linear::Linear(ParameterStore& store, const LinearConfig& config)
    : weight_(&store.declare({.name = config.name,
                              .shape = {config.out, config.in},
                              .std = config.std,
                              .weight_decay = WeightDecay::yes,
                              .sharding = {.tensor_dim = config.tensor_dim}})) {
  if (config.bias.empty()) return;
  bias_ = &store.declare({.name = config.bias,
                          .shape = {config.out},
                          .initializer = Initializer::zeros,
                          .sharding = {.tensor_dim = config.tensor_dim == 0 ? 0 : -1}});
}

Tensor Linear::forward(Pass& pass, ConstTensor x, Saved& saved) const {
  saved.x = x;
  const Tensor y = pass.allocate(x.dtype(), {x.dim(0), out()});
  run(pass.stream, Gemm{.a = x,
                        .b = weight_->value,
                        .c = y,
                        .transpose_b = Transpose::yes,
                        .bias = bias_ ? ConstTensor(bias_->value) : ConstTensor()});
  return y;
}

void Linear::backward_input(Pass& pass, ConstTensor d_y, Saved& saved, Tensor d_x,
                            Accumulate accumulate) const {
  saved.d_y = d_y;
  run(pass.stream, Gemm{.a = d_y, .b = weight_->value, .c = d_x, .accumulate = accumulate});
}

void Linear::backward_weight(Pass& pass, Saved& saved) const {
  run(pass.stream, Gemm{.a = saved.d_y,
                        .b = saved.x,
                        .c = weight_->gradient,
                        .transpose_a = Transpose::yes,
                        .accumulate = Accumulate::add});
  if (bias_) run(pass.stream, ColumnSum{.x = saved.d_y, .y = bias_->gradient});
}

}  // namespace orchard
