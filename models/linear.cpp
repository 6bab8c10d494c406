#include "models/linear.h"

#include "kernels/elementwise/elementwise.h"

namespace orchard {

Linear::Linear(ParameterStore& store, const LinearConfig& config)
    : weight_(&store.declare({.name = config.name,
                              .shape = {config.out, config.in},
                              .std = config.std,
                              .weight_decay = WeightDecay::yes,
                              .sharding = config.sharding})) {
  if (config.bias.empty()) return;
  bias_ =
      &store.declare({.name = config.bias,
                      .shape = {config.out},
                      .initializer = Initializer::zeros,
                      .sharding = config.sharding.tensor_dim == 0 ? config.sharding : Sharding{}});
}

Tensor Linear::forward(Pass& pass, ConstTensor x, Saved& saved) const {
  saved.x = x;
  const Tensor y = pass.allocate(x.dtype(), {x.dim(0), out()});
  multiply(pass, x, y);
  return y;
}

void Linear::backward_input(Pass& pass, ConstTensor d_y, Saved& saved, Tensor d_x,
                            Accumulate accumulate) const {
  saved.d_y = d_y;
  multiply_transposed(pass, d_y, d_x, accumulate);
}

void Linear::backward_weight(Pass& pass, Saved& saved) const {
  add_weight_gradient(pass, saved.d_y, saved.x);
}

void Linear::multiply(Pass& pass, ConstTensor x, Tensor y, Bias bias,
                      const GemmEpilogue& epilogue) const {
  run(pass.stream,
      Gemm{.a = x,
           .b = weight_->value,
           .c = y,
           .transpose_b = Transpose::yes,
           .bias = bias_ && bias == Bias::add ? ConstTensor(bias_->value) : ConstTensor(),
           .epilogue = epilogue});
}

void Linear::multiply_transposed(Pass& pass, ConstTensor d_y, Tensor d_x,
                                 Accumulate accumulate) const {
  run(pass.stream, Gemm{.a = d_y, .b = weight_->value, .c = d_x, .accumulate = accumulate});
}

void Linear::add_weight_gradient(Pass& pass, ConstTensor d_y, ConstTensor x) const {
  run(pass.stream, Gemm{.a = d_y,
                        .b = x,
                        .c = weight_->gradient,
                        .transpose_a = Transpose::yes,
                        .accumulate = Accumulate::add});
  if (bias_) run(pass.stream, ColumnSum{.x = d_y, .y = bias_->gradient});
}

RowLinear::RowLinear(ParameterStore& store, LinearConfig config)
    : linear_([&]() -> Linear {
        config.sharding.tensor_dim = 1;
        return {store, config};
      }()) {}

Tensor RowLinear::forward(Pass& pass, ConstTensor x, Saved& saved) const {
  saved.x = x;
  const std::int64_t rows = x.dim(0);
  const Tensor y = pass.allocate(x.dtype(), {local_rows(pass, rows), linear_.out()});
  RowSum sum(pass, rows, y);
  // The bias goes into one of the parts, so that the sum is still rounded once.
  const bool is_first = tensor_place(pass).index == 0;
  sum.compute([&](std::int64_t first, Tensor part) {
    linear_.multiply(pass, x.slice(first, part.dim(0)), part,
                     is_first ? Linear::Bias::add : Linear::Bias::skip);
  });
  sum.finish();
  return y;
}

void RowLinear::backward_input(Pass& pass, ConstTensor d_y, Saved& saved, Tensor d_x) const {
  RowGathering gathering(pass, d_y, d_x.dim(0));
  saved.d_y = gathering.in_chunks();
  gathering.for_each_piece([&](std::int64_t first, ConstTensor piece) {
    linear_.multiply_transposed(pass, piece, d_x.slice(first, piece.dim(0)), Accumulate::overwrite);
  });
}

void RowLinear::backward_weight(Pass& pass, Saved& saved) const {
  gathered_chunks(pass, saved.x.dim(0))
      .for_each_piece(saved.d_y, [&](std::int64_t first, ConstTensor d_y) {
        linear_.add_weight_gradient(pass, d_y, saved.x.slice(first, d_y.dim(0)));
      });
}

}  // namespace orchard
