// Dense feed-forward layers: SwiGLU in the decoder, two layers with quick-gelu in the vision
// transformer. Inputs and outputs are local activations [local rows, width], see tensor_parallel.h.
#pragma once

#include "models/config.h"
#include "models/linear.h"

namespace orchard {

// y = w_down · (silu(w_gate·x) * (w_up·x)). Declares name.w_gate, .w_up, .w_down.
class SwiGlu {
 public:
  SwiGlu(ParameterStore& store, const std::string& name, const DecoderConfig& config);

  struct Saved {
    ColumnLinears<2>::Saved gate_up;
    RowLinear::Saved down;
    ConstTensor gate, up;  // [rows, ffn of this rank]
  };

  Tensor forward(Pass& pass, ConstTensor x, Saved& saved) const;
  void backward_input(Pass& pass, ConstTensor d_y, Saved& saved, Tensor d_x) const;
  void backward_weight(Pass& pass, Saved& saved) const;

 private:
  ColumnLinears<2> gate_up_;
  RowLinear down_;
};

// y = w_out · quick_gelu(w_in·x + b_in) + b_out. Declares name.w_in, .b_in, .w_out, .b_out.
class VisionMlp {
 public:
  VisionMlp(ParameterStore& store, const std::string& name, const VisionConfig& config);

  struct Saved {
    ColumnLinears<1>::Saved in;
    RowLinear::Saved out;
    ConstTensor hidden;  // [rows, mlp_width of this rank] before the activation
  };

  Tensor forward(Pass& pass, ConstTensor x, Saved& saved) const;
  void backward_input(Pass& pass, ConstTensor d_y, Saved& saved, Tensor d_x) const;
  void backward_weight(Pass& pass, Saved& saved) const;

 private:
  ColumnLinears<1> in_;
  RowLinear out_;
};

}  // namespace orchard
