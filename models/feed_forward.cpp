#include "models/feed_forward.h"

#include <cmath>

#include "kernels/activation/activation.h"

namespace orchard {

SwiGlu::SwiGlu(ParameterStore& store, const std::string& name, const DecoderConfig& config)
    : gate_(store,
            {.name = name + ".w_gate", .in = config.hidden, .out = config.ffn, .tensor_dim = 0}),
      up_(store, {.name = name + ".w_up", .in = config.hidden, .out = config.ffn, .tensor_dim = 0}),
      down_(store, {.name = name + ".w_down",
                    .in = config.ffn,
                    .out = config.hidden,
                    .std = 0.02 / std::sqrt(2.0 * static_cast<double>(config.layers)),
                    .tensor_dim = 1}) {}

Tensor SwiGlu::forward(Pass& pass, ConstTensor x, Saved& saved) const {
  saved.gate = gate_.forward(pass, x, saved.gate_linear);
  saved.up = up_.forward(pass, x, saved.up_linear);
  const Tensor product = pass.allocate_like(saved.gate);
  run(pass.stream, SwiGluForward{.gate = saved.gate, .up = saved.up, .y = product});
  return down_.forward(pass, product, saved.down_linear);
}

void SwiGlu::backward_input(Pass& pass, ConstTensor d_y, Saved& saved, Tensor d_x) const {
  const Tensor d_product = pass.allocate_like(saved.gate);
  down_.backward_input(pass, d_y, saved.down_linear, d_product);
  const Tensor d_gate = pass.allocate_like(saved.gate);
  // d_up takes the place of d_product, which is read for the last time here.
  run(pass.stream, SwiGluBackward{.gate = saved.gate,
                                  .up = saved.up,
                                  .d_y = d_product,
                                  .d_gate = d_gate,
                                  .d_up = d_product});
  gate_.backward_input(pass, d_gate, saved.gate_linear, d_x);
  up_.backward_input(pass, d_product, saved.up_linear, d_x, Accumulate::add);
}

void SwiGlu::backward_weight(Pass& pass, Saved& saved) const {
  gate_.backward_weight(pass, saved.gate_linear);
  up_.backward_weight(pass, saved.up_linear);
  down_.backward_weight(pass, saved.down_linear);
}

VisionMlp::VisionMlp(ParameterStore& store, const std::string& name, const VisionConfig& config)
    : in_(store, {.name = name + ".w_in",
                  .in = config.width,
                  .out = config.mlp_width,
                  .bias = name + ".b_in",
                  .tensor_dim = 0}),
      out_(store, {.name = name + ".w_out",
                   .in = config.mlp_width,
                   .out = config.width,
                   .std = 0.02 / std::sqrt(2.0 * static_cast<double>(config.layers)),
                   .bias = name + ".b_out",
                   .tensor_dim = 1}) {}

Tensor VisionMlp::forward(Pass& pass, ConstTensor x, Saved& saved) const {
  saved.hidden = in_.forward(pass, x, saved.in_linear);
  const Tensor active = pass.allocate_like(saved.hidden);
  run(pass.stream,
      ActivationForward{.kind = Activation::quick_gelu, .x = saved.hidden, .y = active});
  return out_.forward(pass, active, saved.out_linear);
}

void VisionMlp::backward_input(Pass& pass, ConstTensor d_y, Saved& saved, Tensor d_x) const {
  const Tensor d_hidden = pass.allocate_like(saved.hidden);
  out_.backward_input(pass, d_y, saved.out_linear, d_hidden);
  run(pass.stream,
      ActivationBackward{
          .kind = Activation::quick_gelu, .x = saved.hidden, .d_y = d_hidden, .d_x = d_hidden});
  in_.backward_input(pass, d_hidden, saved.in_linear, d_x);
}

void VisionMlp::backward_weight(Pass& pass, Saved& saved) const {
  in_.backward_weight(pass, saved.in_linear);
  out_.backward_weight(pass, saved.out_linear);
}

}  // namespace orchard
