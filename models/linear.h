// y = x · w^T (+ b), weights stored [out, in].
#pragma once

#include "kernels/gemm/gemm.h"
#include "models/layer.h"

namespace orchard {

struct LinearConfig {
  std::string name;  // the weight's; the bias is called after it
  std::int64_t in = 0;
  std::int64_t out = 0;
  double std = 0.02;
  std::string bias = {};  // name of the bias; empty: none
  int tensor_dim = -1;    // dimension of the weight cut over tensor ranks
};

class Linear {
 public:
  Linear(ParameterStore& store, const LinearConfig& config);

  struct Saved {
    ConstTensor x;    // [rows, in]
    ConstTensor d_y;  // [rows, out]
  };

  Tensor forward(Pass& pass, ConstTensor x, Saved& saved) const;
  // With Accumulate::add the result is added to d_x: for several layers that read one input.
  void backward_input(Pass& pass, ConstTensor d_y, Saved& saved, Tensor d_x,
                      Accumulate accumulate = Accumulate::overwrite) const;
  void backward_weight(Pass& pass, Saved& saved) const;

  // Columns of y that this rank computes.
  std::int64_t out() const { return weight_->shape()[0]; }

 private:
  Parameter* weight_;
  Parameter* bias_ = nullptr;
};

}  // namespace orchard
