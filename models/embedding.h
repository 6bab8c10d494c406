// Token embedding: rows of the table for text, the connector's rows for visual tokens.
#pragma once

#include "models/layer.h"

namespace orchard {

class TokenEmbedding {
 public:
  // `table` [vocab, hidden].
  explicit TokenEmbedding(const Parameter& table) : table_(&table) {}

  struct Saved {};

  // visual.sum: [visual tokens, hidden], absent where the micro-batch has no pictures. Returns
  // [local rows, hidden] (see tensor_parallel.h).
  Residual forward(Pass& pass, const Residual& visual, Saved& saved) const;
  // Also adds to the table's gradient, which is a by-product of the same pass. d_visual: shape of
  // visual.sum, or absent.
  void backward_input(Pass& pass, ConstTensor d_y, Saved& saved, Tensor d_visual) const;
  void backward_weight(Pass&, Saved&) const {}

  // Head and lookup share the table, and the head's part of its gradient comes in forward.
  std::size_t first_declared() const { return table_->declared; }

 private:
  const Parameter* table_;
};

}  // namespace orchard
