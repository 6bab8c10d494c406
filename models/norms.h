// Norm layers, of local rows (see tensor_parallel.h), that also carry the residual stream: they add
// the pending delta, keep the sum for the stream and return its normalised value. In backward the
// stream's own gradient joins d_x in the same pass.
#pragma once

#include "models/layer.h"

namespace orchard {

class RmsNorm {
 public:
  // Declares `name`, ones.
  RmsNorm(ParameterStore& store, const std::string& name, std::int64_t width);

  struct Saved {
    ConstTensor sum;          // [rows, width] what was normalised
    ConstTensor inverse_rms;  // f32 [rows]
  };

  Tensor forward(Pass& pass, const Residual& x, Saved& saved) const;
  // d_x = through the norm + d_sum (the gradient along the stream; absent: none); also adds to
  // d_weight: the weight half of a norm is a by-product of the same pass over memory, so it is not
  // split.
  void backward(Pass& pass, ConstTensor d_y, ConstTensor d_sum, Saved& saved, Tensor d_x) const;

 private:
  Parameter* weight_;
};

class LayerNorm {
 public:
  // Declares `name`.weight, ones, and `name`.bias, zeros. `gradient`: everything where every tensor
  // rank normalises all rows.
  LayerNorm(ParameterStore& store, const std::string& name, std::int64_t width,
            GradientOf gradient = GradientOf::local_rows);

  struct Saved {
    ConstTensor sum;          // [rows, width]
    ConstTensor mean;         // f32 [rows]
    ConstTensor inverse_std;  // f32 [rows]
  };

  Tensor forward(Pass& pass, const Residual& x, Saved& saved) const;
  void backward(Pass& pass, ConstTensor d_y, ConstTensor d_sum, Saved& saved, Tensor d_x) const;

 private:
  Parameter* weight_;
  Parameter* bias_;
};

}  // namespace orchard
