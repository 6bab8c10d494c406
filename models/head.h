// The language-model head and its loss: logits = h · table^T for target rows only, chunk by chunk.
#pragma once

#include "models/layer.h"

namespace orchard {

// What a pass is run for: training needs gradients, evaluation only losses.
enum class Purpose : std::uint8_t { train, evaluate };

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

  void forward(Pass& pass, ConstTensor h, Saved& saved, Purpose purpose) const;
  void backward_input(Pass& pass, Saved& saved, Tensor d_h) const;

  // Logits of every row of h, f32 [rows, vocab]: for generation.
  Tensor logits(Pass& pass, ConstTensor h) const;

 private:
  const Parameter* table_;
};

}  // namespace orchard
