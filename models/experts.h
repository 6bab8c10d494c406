// The feed-forwards of this rank's experts, or of its parts of them: a SwiGLU each, as grouped
// products.
//   rows of expert e: y = (silu(x · w_gate[e]^T) * (x · w_up[e]^T)) · w_down[e]^T
// Where an expert is cut into parts, each has a share of the ffn columns, and the parts' y add up.
#pragma once

#include "models/config.h"
#include "models/layer.h"

namespace orchard {

class Experts {
 public:
  // Declares name.experts.<e>.{w_gate, w_up, w_down} of all experts.
  Experts(ParameterStore& store, const std::string& name, const DecoderConfig& config);

  // Rows at or after row_offsets[local experts] are neither read nor written.
  struct Rows {
    ConstTensor x;            // [max_rows, width]; with source [tokens, width]
    ConstTensor row_offsets;  // i32 [local experts + 1]
    ConstTensor source = {};  // i32 [max_rows]: the token of each row, as GroupedGemm takes it

    std::int64_t count() const { return source ? source.dim(0) : x.dim(0); }
  };

  struct Saved {
    Rows rows;                            // of width hidden
    ConstTensor gate, up, product;        // [max_rows, ffn of a part]
    ConstTensor d_results, d_gate, d_up;  // for the weight half
  };

  // Experts of which this rank has something.
  std::int64_t here() const { return local_; }

  // Returns [max_rows, hidden].
  Tensor forward(Pass& pass, const Rows& rows, Saved& saved) const;
  // Returns d_rows [max_rows, hidden].
  Tensor backward_input(Pass& pass, ConstTensor d_results, Saved& saved) const;
  void backward_weight(Pass& pass, const Saved& saved) const;

 private:
  ConstTensor weights(const Parameter* first) const;
  Tensor gradients(const Parameter* first) const;

  const ParameterStore& store_;
  std::int64_t hidden_, local_ = 0;  // local: experts of which this rank holds something
  // Of the first expert that is here; the others follow.
  const Parameter* gate_;
  const Parameter* up_;
  const Parameter* down_;
};

}  // namespace orchard
