#include "models/norms.h"

#include "kernels/norm/norm.h"

namespace orchard {
namespace {

Parameter& declare_scale(ParameterStore& store, const std::string& name, std::int64_t width,
                         GradientOf gradient) {
  return store.declare({.name = name,
                        .shape = {width},
                        .initializer = Initializer::ones,
                        .sharding = {.gradient = gradient}});
}

}  // namespace

RmsNorm::RmsNorm(ParameterStore& store, const std::string& name, std::int64_t width)
    : weight_(&declare_scale(store, name, width, GradientOf::local_rows)) {}

Tensor RmsNorm::forward(Pass& pass, const Residual& x, Saved& saved) const {
  const RmsNormForward op{.x = x.sum,
                          .delta = x.delta,
                          .weight = weight_->value,
                          .sum = x.delta ? pass.allocate_like(x.sum) : Tensor(),
                          .y = pass.allocate_like(x.sum),
                          .inverse_rms = pass.allocate(DType::f32, {x.sum.dim(0)})};
  run(pass.stream, op);
  saved = {.sum = x.delta ? ConstTensor(op.sum) : x.sum, .inverse_rms = op.inverse_rms};
  return op.y;
}

void RmsNorm::backward(Pass& pass, ConstTensor d_y, ConstTensor d_sum, Saved& saved,
                       Tensor d_x) const {
  run(pass.stream, RmsNormBackward{.x = saved.sum,
                                   .weight = weight_->value,
                                   .inverse_rms = saved.inverse_rms,
                                   .d_y = d_y,
                                   .d_sum = d_sum,
                                   .d_x = d_x,
                                   .d_weight = weight_->gradient});
}

LayerNorm::LayerNorm(ParameterStore& store, const std::string& name, std::int64_t width,
                     GradientOf gradient)
    : weight_(&declare_scale(store, name + ".weight", width, gradient)),
      bias_(&store.declare({.name = name + ".bias",
                            .shape = {width},
                            .initializer = Initializer::zeros,
                            .sharding = {.gradient = gradient}})) {}

Tensor LayerNorm::forward(Pass& pass, const Residual& x, Saved& saved) const {
  const LayerNormForward op{.x = x.sum,
                            .delta = x.delta,
                            .weight = weight_->value,
                            .bias = bias_->value,
                            .sum = x.delta ? pass.allocate_like(x.sum) : Tensor(),
                            .y = pass.allocate_like(x.sum),
                            .mean = pass.allocate(DType::f32, {x.sum.dim(0)}),
                            .inverse_std = pass.allocate(DType::f32, {x.sum.dim(0)})};
  run(pass.stream, op);
  saved = {
      .sum = x.delta ? ConstTensor(op.sum) : x.sum, .mean = op.mean, .inverse_std = op.inverse_std};
  return op.y;
}

void LayerNorm::backward(Pass& pass, ConstTensor d_y, ConstTensor d_sum, Saved& saved,
                         Tensor d_x) const {
  run(pass.stream, LayerNormBackward{.x = saved.sum,
                                     .weight = weight_->value,
                                     .mean = saved.mean,
                                     .inverse_std = saved.inverse_std,
                                     .d_y = d_y,
                                     .d_sum = d_sum,
                                     .d_x = d_x,
                                     .d_weight = weight_->gradient,
                                     .d_bias = bias_->gradient});
}

}  // namespace orchard
