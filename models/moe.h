// The mixture-of-experts feed-forward:
//   router -> to the experts -> SwiGLU of each expert -> back to the tokens -> weighted sum
//
// Over several ranks. Tensor ranks that hold the same rows each send an equal share of them to the
// experts and gather the results; with sequence parallelism a rank has only its share. Either way
// every rank decides about all rows of the micro-batch, from the same logits, so that capacity and
// balance loss see whole sequences. The experts may be on other ranks (parallel/expert_dispatcher.h).
// A rank's rows can be sent in several parts, the first of which its experts work on while the next
// is under way. With a capacity, and micro-batches that are alike on all ranks, no rank can have more
// rows for an expert than the capacity of the sequences that a part touches: messages have that size
// (models/fixed_messages.h), and nobody waits for counts.
#pragma once

#include "models/config.h"
#include "models/experts.h"
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

  // Rows that travel and are computed together.
  struct Part {
    std::int64_t begin = 0, count = 0;  // among the rows that this rank sends
    std::shared_ptr<const ExpertRoutes> routes;
    ConstTensor results;  // [owner's rows, hidden] before the weighted sum
    Experts::Saved experts;
  };

  struct Saved {
    RouterStatistics statistics;  // allocated by forward unless the caller has done so
    ConstTensor x_f32;            // f32 [rows here, hidden] what the router read; x itself in f32
    RouterForward router;         // its operands: probabilities, experts, gates ...
    ConstTensor d_logits;         // f32 [rows here, experts], for the weight half
    std::vector<Part> parts;
  };

  RouterStatistics allocate_statistics(Pass& pass) const;
  const Parameter* router() const { return router_; }

  // x: [rows, hidden], or with sequence parallelism this rank's share of them.
  Tensor forward(Pass& pass, ConstTensor x, Saved& saved) const;
  void backward_input(Pass& pass, ConstTensor d_y, Saved& saved, Tensor d_x) const;
  void backward_weight(Pass& pass, Saved& saved) const;

 private:
  class Share;
  void route(Pass& pass, const Share& share, ConstTensor x, Saved& saved) const;
  void plan(Pass& pass, const Share& share, ConstTensor x, Saved& saved) const;
  // Rows that any rank can have for an expert in one part, the same number on all of them; 0: not
  // known, or not to be used.
  std::int64_t most_rows(const Pass& pass, const Share& share,
                         const ExpertDispatchOptions& options) const;
  // Gradient of what the router read, [rows that this rank sends, hidden], in `dtype`.
  Tensor router_backward(Pass& pass, const Share& share, ConstTensor d_gates, DType dtype,
                         Saved& saved) const;

  DecoderConfig config_;
  Parameter* router_;
  Experts experts_;
};

}  // namespace orchard
