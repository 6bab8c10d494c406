// y = x · w^T (+ b), weights stored [out, in]: whole on every rank, or cut between tensor ranks in
// pairs (see tensor_parallel.h).
#pragma once

#include <algorithm>
#include <array>
#include <vector>

#include "kernels/gemm/gemm.h"
#include "models/layer.h"
#include "models/tensor_parallel.h"

namespace orchard {

struct LinearConfig {
  std::string name;  // the weight's; the bias is called after it
  std::int64_t in = 0;
  std::int64_t out = 0;
  double std = 0.02;
  std::string bias = {};   // name of the bias; empty: none
  Sharding sharding = {};  // of the weight. A bias goes with the output columns
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

  // The bare products, over what this rank holds of the weight.
  enum class Bias : std::uint8_t { add, skip };
  void multiply(Pass& pass, ConstTensor x, Tensor y, Bias bias = Bias::add,
                const GemmEpilogue& epilogue = {}) const;
  void multiply_transposed(Pass& pass, ConstTensor d_y, Tensor d_x, Accumulate accumulate) const;
  void add_weight_gradient(Pass& pass, ConstTensor d_y, ConstTensor x) const;

  // Columns of y that this rank computes.
  std::int64_t out() const { return weight_->shape()[0]; }

 private:
  Parameter* weight_;
  Parameter* bias_ = nullptr;
};

// Linear layers that read one input, cut by their output columns: the first half of a pair. Under
// sequence parallelism what is saved of the input is its local share, gathered once more for the
// weight gradient. Where rows come in chunks, weight gradients are added up chunk by chunk.
template <std::size_t count>
class ColumnLinears {
 public:
  ColumnLinears(ParameterStore& store, const std::array<LinearConfig, count>& configs) {
    for (LinearConfig config : configs) {
      config.sharding.tensor_dim = 0;
      linears_.emplace_back(store, config);
    }
  }

  struct Saved {
    ConstTensor x;                       // [local rows, in]
    std::array<ConstTensor, count> d_y;  // [rows, out of this rank]
  };
  using Outputs = std::array<Tensor, count>;

  // What an epilogue makes of the first layer's outputs; its `other` are the last layer's.
  struct Finish {
    EpilogueKind kind = EpilogueKind::none;
    Tensor y = {};  // [rows, out of this rank]
  };

  // x: [local rows, in] of `rows` rows. Returns [rows, out of this rank] of each.
  Outputs forward(Pass& pass, ConstTensor x, std::int64_t rows, Saved& saved,
                  const Finish& finish = {}) const {
    saved.x = x;
    Outputs y;
    for (std::size_t i = 0; i < count; ++i)
      y[i] = pass.allocate(x.dtype(), {rows, linears_[i].out()});
    const ArenaScope scope(pass.arena);
    RowGathering(pass, x, rows).for_each_piece([&](std::int64_t first, ConstTensor piece) {
      const auto piece_of = [&](const Tensor& all) { return all.slice(first, piece.dim(0)); };
      for (std::size_t i = 1; i < count; ++i) linears_[i].multiply(pass, piece, piece_of(y[i]));
      if (finish.kind == EpilogueKind::none)
        return linears_[0].multiply(pass, piece, piece_of(y[0]));
      linears_[0].multiply(pass, piece, piece_of(finish.y), Linear::Bias::add,
                           {.kind = finish.kind,
                            .other = count > 1 ? piece_of(y[count - 1]) : Tensor(),
                            .pre = piece_of(y[0])});
    });
    return y;
  }

  void backward_input(Pass& pass, const Outputs& d_y, Saved& saved, Tensor d_x) const {
    std::ranges::copy(d_y, saved.d_y.begin());
    RowSum sum(pass, d_y[0].dim(0), d_x);
    sum.compute([&](std::int64_t first, Tensor part) {
      for (std::size_t i = 0; i < count; ++i)
        linears_[i].multiply_transposed(pass, d_y[i].slice(first, part.dim(0)), part,
                                        i == 0 ? Accumulate::overwrite : Accumulate::add);
    });
    sum.finish();
  }

  void backward_weight(Pass& pass, Saved& saved) const {
    const ArenaScope scope(pass.arena);
    RowGathering gathering(pass, saved.x, saved.d_y[0].dim(0));
    gathering.for_each_piece([&](std::int64_t first, ConstTensor x) {
      for (std::size_t i = 0; i < count; ++i)
        linears_[i].add_weight_gradient(pass, saved.d_y[i].slice(first, x.dim(0)), x);
    });
  }

  // Columns that this rank computes of layer `i`.
  std::int64_t out(std::size_t i) const { return linears_[i].out(); }

 private:
  std::vector<Linear> linears_;
};

// A linear layer cut by its input columns: the second half of a pair.
class RowLinear {
 public:
  RowLinear(ParameterStore& store, LinearConfig config);

  struct Saved {
    ConstTensor x;    // [rows, in of this rank]
    ConstTensor d_y;  // [rows, out], under sequence parallelism padded and in the order of chunks
  };

  // x: [rows, in of this rank]. Returns [local rows, out].
  Tensor forward(Pass& pass, ConstTensor x, Saved& saved) const;
  void backward_input(Pass& pass, ConstTensor d_y, Saved& saved, Tensor d_x) const;
  void backward_weight(Pass& pass, Saved& saved) const;

 private:
  Linear linear_;
};

}  // namespace orchard
