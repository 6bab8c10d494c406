// The language-model head and its loss: logits = h · table^T for target rows only, chunk by chunk.
#pragma once

#include "models/layer.h"

namespace orchard {

// A chunk's logits exist only until its loss is taken, so the gradient with respect to h, and the
// table's, are taken there and then: doing it in backward would mean to compute all logits twice.
// The table's gradient is therefore added to in forward; micro-batches still come in order.
class LanguageModelHead {
 public:
  // `table` [vocab, hidden] is the token embedding, shared.
  explicit LanguageModelHead(const Parameter& table) : table_(&table) {}

  struct Saved {
    ConstTensor losses;    // f32 [padded targets], in the order of batch.target_rows; 0 for padding
    ConstTensor d_target;  // [padded targets, hidden] gradient of the target rows, scaled
  };

  // x.sum: the final norm's output [rows, hidden]. Hands nothing on.
  Residual forward(Pass& pass, const Residual& x, Saved& saved) const;
  // d_y is absent.
  void backward_input(Pass& pass, ConstTensor d_y, Saved& saved, Tensor d_h) const;
  void backward_weight(Pass&, Saved&) const {}

  // Logits of every row of h, f32 [rows, vocab]: for generation.
  Tensor logits(Pass& pass, ConstTensor h) const;

 private:
  const Parameter* table_;
};

}  // namespace orchard
