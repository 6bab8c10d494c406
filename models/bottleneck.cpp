#include "models/bottleneck.h"

#include "kernels/activation/activation.h"
#include "kernels/convolution/convolution.h"
#include "kernels/elementwise/elementwise.h"

namespace orchard {
namespace {

Tensor silu(Pass& pass, ConstTensor x) {
  const Tensor y = pass.allocate_like(x);
  run(pass.stream, ActivationForward{.kind = Activation::silu, .x = x, .y = y});
  return y;
}

void silu_backward(Pass& pass, ConstTensor x, ConstTensor d_y, Tensor d_x) {
  run(pass.stream, ActivationBackward{.kind = Activation::silu, .x = x, .d_y = d_y, .d_x = d_x});
}

std::int64_t excitation_width(std::int64_t in) {
  return std::max<std::int64_t>(1, (in + 2) / 4);
}

}  // namespace

Bottleneck::Bottleneck(ParameterStore& store, const std::string& name, std::int64_t in,
                       std::int64_t out)
    : out_(out),
      conv1_(store, {.name = name + ".conv1", .in = in, .out = out}),
      norm1_(store, name + ".norm1", out, GradientOf::everything),
      conv2_(&store.declare(
          {.name = name + ".conv2", .shape = {out, 3, 3}, .weight_decay = WeightDecay::yes})),
      norm2_(store, name + ".norm2", out, GradientOf::everything),
      se_reduce_(store, {.name = name + ".se_reduce",
                         .in = out,
                         .out = excitation_width(in),
                         .bias = name + ".se_reduce_bias"}),
      se_expand_(store, {.name = name + ".se_expand",
                         .in = excitation_width(in),
                         .out = out,
                         .bias = name + ".se_expand_bias"}),
      conv3_(store, {.name = name + ".conv3", .in = out, .out = out}),
      norm3_(store, name + ".norm3", out, GradientOf::everything) {
  if (in == out) return;
  shortcut_.emplace(store, LinearConfig{.name = name + ".shortcut", .in = in, .out = out});
  shortcut_norm_.emplace(store, name + ".shortcut_norm", out, GradientOf::everything);
}

Tensor Bottleneck::forward(Pass& pass, ConstTensor x, const PixelGrid& grid, Saved& saved) const {
  saved.grid = grid;
  const Shape pixels{grid.images, grid.height * grid.width, out_};

  saved.normed1 = norm1_.forward(pass, {conv1_.forward(pass, x, saved.conv1), {}}, saved.norm1);
  saved.active1 = silu(pass, saved.normed1);
  const Tensor depthwise = pass.allocate_like(saved.active1);
  run(pass.stream, DepthwiseConv3x3Forward{.x = saved.active1.reshape(grid.with(out_)),
                                           .weight = conv2_->value,
                                           .y = depthwise.reshape(grid.with(out_))});
  saved.normed2 = norm2_.forward(pass, {depthwise, {}}, saved.norm2);
  saved.active2 = silu(pass, saved.normed2);

  const Tensor mean = pass.allocate(x.dtype(), {grid.images, out_});
  run(pass.stream, AdaptiveAveragePoolForward{.x = saved.active2.reshape(grid.with(out_)),
                                              .y = mean.reshape({grid.images, 1, 1, out_})});
  saved.squeezed = se_reduce_.forward(pass, mean, saved.se_reduce);
  saved.excitation = se_expand_.forward(pass, silu(pass, saved.squeezed), saved.se_expand);
  const Tensor excited = pass.allocate_like(saved.active2);
  run(pass.stream, ExciteForward{.x = saved.active2.reshape(pixels),
                                 .scale = saved.excitation,
                                 .y = excited.reshape(pixels)});

  const Tensor y =
      norm3_.forward(pass, {conv3_.forward(pass, excited, saved.conv3), {}}, saved.norm3);
  const ConstTensor shortcut =
      shortcut_ ? ConstTensor(shortcut_norm_->forward(
                      pass, {shortcut_->forward(pass, x, saved.shortcut), {}}, saved.shortcut_norm))
                : x;
  run(pass.stream, Add{.a = y, .b = shortcut, .y = y});
  saved.before_last = y;
  return silu(pass, y);
}

void Bottleneck::backward_input(Pass& pass, ConstTensor d_y, Saved& saved, Tensor d_x) const {
  const PixelGrid& grid = saved.grid;
  const Shape pixels{grid.images, grid.height * grid.width, out_};
  const Tensor d_sum = pass.allocate_like(d_y);
  silu_backward(pass, saved.before_last, d_y, d_sum);

  const Tensor d_conv3 = pass.allocate_like(d_y);
  norm3_.backward(pass, d_sum, {}, saved.norm3, d_conv3);
  const Tensor d_excited = pass.allocate_like(d_y);
  conv3_.backward_input(pass, d_conv3, saved.conv3, d_excited);

  const Tensor d_excitation = pass.allocate_like(saved.excitation);
  const Tensor d_active2 = pass.allocate_like(d_y);
  run(pass.stream, ExciteBackward{.x = saved.active2.reshape(pixels),
                                  .scale = saved.excitation,
                                  .d_y = d_excited.reshape(pixels),
                                  .d_x = d_active2.reshape(pixels),
                                  .d_scale = d_excitation});
  const Tensor d_squeezed = pass.allocate_like(saved.squeezed);
  se_expand_.backward_input(pass, d_excitation, saved.se_expand, d_squeezed);
  silu_backward(pass, saved.squeezed, d_squeezed, d_squeezed);
  const Tensor d_mean = pass.allocate(d_y.dtype(), {grid.images, out_});
  se_reduce_.backward_input(pass, d_squeezed, saved.se_reduce, d_mean);
  run(pass.stream, AdaptiveAveragePoolBackward{.d_y = d_mean.reshape({grid.images, 1, 1, out_}),
                                               .d_extra = d_active2.reshape(grid.with(out_)),
                                               .d_x = d_active2.reshape(grid.with(out_))});

  silu_backward(pass, saved.normed2, d_active2, d_active2);
  const Tensor d_depthwise = pass.allocate_like(d_y);
  norm2_.backward(pass, d_active2, {}, saved.norm2, d_depthwise);
  saved.d_depthwise = d_depthwise;
  const Tensor d_active1 = pass.allocate_like(d_y);
  run(pass.stream, DepthwiseConv3x3BackwardInput{.d_y = d_depthwise.reshape(grid.with(out_)),
                                                 .weight = conv2_->value,
                                                 .d_x = d_active1.reshape(grid.with(out_))});
  silu_backward(pass, saved.normed1, d_active1, d_active1);
  const Tensor d_conv1 = pass.allocate_like(d_y);
  norm1_.backward(pass, d_active1, {}, saved.norm1, d_conv1);
  conv1_.backward_input(pass, d_conv1, saved.conv1, d_x);

  if (shortcut_) {
    const Tensor d_shortcut = pass.allocate_like(d_y);
    shortcut_norm_->backward(pass, d_sum, {}, saved.shortcut_norm, d_shortcut);
    shortcut_->backward_input(pass, d_shortcut, saved.shortcut, d_x, Accumulate::add);
  } else {
    run(pass.stream, Add{.a = d_x, .b = d_sum, .y = d_x});
  }
}

void Bottleneck::backward_weight(Pass& pass, Saved& saved) const {
  const Shape shape = saved.grid.with(out_);
  conv1_.backward_weight(pass, saved.conv1);
  run(pass.stream, DepthwiseConv3x3BackwardWeight{.x = saved.active1.reshape(shape),
                                                  .d_y = saved.d_depthwise.reshape(shape),
                                                  .d_weight = conv2_->gradient});
  se_reduce_.backward_weight(pass, saved.se_reduce);
  se_expand_.backward_weight(pass, saved.se_expand);
  conv3_.backward_weight(pass, saved.conv3);
  if (shortcut_) shortcut_->backward_weight(pass, saved.shortcut);
}

}  // namespace orchard
