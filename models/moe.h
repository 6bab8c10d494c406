// The mixture-of-experts feed-forward: router -> permute -> grouped SwiGLU of each expert ->
// weighted combine.
#pragma once

#include "models/config.h"
#include "models/layer.h"

namespace orchard {

// What a step reports of one sparse layer and micro-batch, and what a comparison of two runs
// replays. Written by forward; outlives recomputation when it is allocated before the block.
struct RouterStatistics {
  Tensor balance_loss;   // f32 [sequences]
  Tensor z_loss;         // f32 [sequences] sums over real tokens
  Tensor expert_counts;  // i32 [2, experts] choices before and after capacity
  Tensor chosen;         // i32 [rows, k]
  Tensor margins;        // f32 [rows]
};

class MixtureOfExperts {
 public:
  // Declares name.router [experts, hidden] and name.experts.<e>.{w_gate, w_up, w_down}.
  MixtureOfExperts(ParameterStore& store, const std::string& name, const DecoderConfig& config);

  struct Saved {
    RouterStatistics statistics;  // allocated by forward unless the caller has done so
    ConstTensor x;                // [rows, hidden]
    ConstTensor x_f32;            // f32 [rows, hidden] what the router read; x itself in f32 mode
    RouterForward router;         // its operands: probabilities, experts, gates ...
    ConstTensor row_offsets, source, slot;  // permutation
    ConstTensor rows;                       // [max_rows, hidden] dispatched
    ConstTensor gate, up, product;          // [max_rows, ffn]
    ConstTensor results;                    // [max_rows, hidden] before the combine
    ConstTensor d_results, d_gate, d_up;    // for the weight half
    ConstTensor d_logits;                   // f32 [rows, experts]
  };

  RouterStatistics allocate_statistics(Pass& pass) const;
  const Parameter* router() const { return router_; }

  Tensor forward(Pass& pass, ConstTensor x, Saved& saved) const;
  void backward_input(Pass& pass, ConstTensor d_y, Saved& saved, Tensor d_x) const;
  void backward_weight(Pass& pass, Saved& saved) const;

 private:
  ConstTensor experts(const Parameter* first) const;
  Tensor expert_gradients(const Parameter* first) const;

  const ParameterStore& store_;
  DecoderConfig config_;
  Parameter* router_;
  const Parameter* gate_;  // of expert 0; the others follow
  const Parameter* up_;
  const Parameter* down_;
};

}  // namespace orchard
