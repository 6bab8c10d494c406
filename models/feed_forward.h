// Dense feed-forward layers: SwiGLU in the decoder, two layers with quick-gelu in the vision
// transformer.
#pragma once

#include "models/config.h"
#include "models/linear.h"

namespace orchard {

// y = w_down · (silu(w_gate·x) * (w_up·x)). Declares name.w_gate, .w_up, .w_down.
class SwiGlu {
 public:
  SwiGlu(ParameterStore& store, const std::string& name, const DecoderConfig& config);

  struct Saved {
    Linear::Saved gate_linear, up_linear, down_linear;
    ConstTensor gate, up;  // [rows, ffn]
  };

  Tensor forward(Pass& pass, ConstTensor x, Saved& saved) const;
  void backward_input(Pass& pass, ConstTensor d_y, Saved& saved, Tensor d_x) const;
  void backward_weight(Pass& pass, Saved& saved) const;

 private:
  Linear gate_, up_, down_;
};

// y = w_out · quick_gelu(w_in·x + b_in) + b_out. Declares name.w_in, .b_in, .w_out, .b_out.
class VisionMlp {
 public:
  VisionMlp(ParameterStore& store, const std::string& name, const VisionConfig& config);

  struct Saved {
    Linear::Saved in_linear, out_linear;
    ConstTensor hidden;  // [rows, mlp_width] before the activation
  };

  Tensor forward(Pass& pass, ConstTensor x, Saved& saved) const;
  void backward_input(Pass& pass, ConstTensor d_y, Saved& saved, Tensor d_x) const;
  void backward_weight(Pass& pass, Saved& saved) const;

 private:
  Linear in_, out_;
};

}  // namespace orchard
