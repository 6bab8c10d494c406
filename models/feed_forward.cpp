#include "models/feed_forward.h"

#include <cmath>

#include "kernels/activation/activation.h"

namespace orchard {

SwiGlu::SwiGlu(ParameterStore& store, const std::string& name, const DecoderConfig& config)
    : gate_up_(store,
               {LinearConfig{.name = name + ".w_gate", .in = config.hidden, .out = config.ffn},
                LinearConfig{.name = name + ".w_up", .in = config.hidden, .out = config.ffn}}),
      down_(store, {.name = name + ".w_down",
                    .in = config.ffn,
                    .out = config.hidden,
                    .std = 0.02 / std::sqrt(2.0 * static_cast<double>(config.layers))}) {}

Tensor SwiGlu::forward(Pass& pass, ConstTensor x, Saved& saved) const {
  const Tensor product = pass.allocate(x.dtype(), {pass.batch.rows, gate_up_.out(0)});
  const auto [gate, up] =
      gate_up_.forward(pass, x, pass.batch.rows, saved.gate_up, {EpilogueKind::silu_gate, product});
  saved.gate = gate;
  saved.up = up;
  return down_.forward(pass, product, saved.down);
}

void SwiGlu::backward_input(Pass& pass, ConstTensor d_y, Saved& saved, Tensor d_x) const {
  const Tensor d_product = pass.allocate_like(saved.gate);
  down_.backward_input(pass, d_y, saved.down, d_product);
  const Tensor d_gate = pass.allocate_like(saved.gate);
  // d_up takes the place of d_product, which is read for the last time here.
  run(pass.stream, SwiGluBackward{.gate = saved.gate,
                                  .up = saved.up,
                                  .d_y = d_product,
                                  .d_gate = d_gate,
                                  .d_up = d_product});
  gate_up_.backward_input(pass, {d_gate, d_product}, saved.gate_up, d_x);
}

void SwiGlu::backward_weight(Pass& pass, Saved& saved) const {
  gate_up_.backward_weight(pass, saved.gate_up);
  down_.backward_weight(pass, saved.down);
}

VisionMlp::VisionMlp(ParameterStore& store, const std::string& name, const VisionConfig& config)
    : in_(store, {LinearConfig{.name = name + ".w_in",
                               .in = config.width,
                               .out = config.mlp_width,
                               .bias = name + ".b_in"}}),
      out_(store, {.name = name + ".w_out",
                   .in = config.mlp_width,
                   .out = config.width,
                   .std = 0.02 / std::sqrt(2.0 * static_cast<double>(config.layers)),
                   .bias = name + ".b_out"}) {}

Tensor VisionMlp::forward(Pass& pass, ConstTensor x, Saved& saved) const {
  const Tensor active = pass.allocate(x.dtype(), {pass.batch.tower_rows, in_.out(0)});
  const auto [hidden] =
      in_.forward(pass, x, pass.batch.tower_rows, saved.in, {EpilogueKind::quick_gelu, active});
  saved.hidden = hidden;
  return out_.forward(pass, active, saved.out);
}

void VisionMlp::backward_input(Pass& pass, ConstTensor d_y, Saved& saved, Tensor d_x) const {
  const Tensor d_hidden = pass.allocate_like(saved.hidden);
  out_.backward_input(pass, d_y, saved.out, d_hidden);
  run(pass.stream,
      ActivationBackward{
          .kind = Activation::quick_gelu, .x = saved.hidden, .d_y = d_hidden, .d_x = d_hidden});
  in_.backward_input(pass, {d_hidden}, saved.in, d_x);
}

void VisionMlp::backward_weight(Pass& pass, Saved& saved) const {
  in_.backward_weight(pass, saved.in);
  out_.backward_weight(pass, saved.out);
}

}  // namespace orchard
