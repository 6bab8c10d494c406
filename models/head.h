// The language-model head and its loss: logits = h · table^T for target rows only, chunk by chunk.
// Each tensor rank has the logits of its share of the vocabulary.
#pragma once

#include "kernels/loss/loss.h"
#include "models/layer.h"

namespace orchard {

// The ids that this rank's slice of the token embedding, [vocab, hidden], has rows for.
VocabularyShard shard_of_vocabulary(const Parameter& table);

// A chunk's logits exist only until its loss is taken, so the gradient with respect to h, and the
// table's, are taken there and then: doing it in backward would mean to compute all logits twice.
// The table's gradient is therefore added to in forward; micro-batches still come in order.
class LanguageModelHead {
 public:
  // `table` [vocab, hidden] is the token embedding, shared.
  explicit LanguageModelHead(const Parameter& table) : table_(&table) {}

  struct Saved {
    ConstTensor losses;  // f32 [padded targets], in the order of batch.target_rows; 0 for padding
    // [padded targets, hidden] gradient of the target rows, scaled; of several tensor ranks f32,
    // this rank's part of the sum.
    ConstTensor d_target;
  };

  // x.sum: the final norm's output [local rows, hidden] (see tensor_parallel.h). Hands nothing on.
  Residual forward(Pass& pass, const Residual& x, Saved& saved) const;
  // d_y is absent.
  void backward_input(Pass& pass, ConstTensor d_y, Saved& saved, Tensor d_h) const;
  void backward_weight(Pass&, Saved&) const {}

  // Logits of the last row of h [local rows, hidden], f32 [1, vocab], on every tensor rank: for
  // generation.
  Tensor last_logits(Pass& pass, ConstTensor h) const;

 private:
  // `loss` over the shards of the tensor ranks. Overwrites `exponentials`, f32, the logits' memory.
  void run_sharded(Pass& pass, const CrossEntropy& loss, Tensor exponentials) const;

  const Parameter* table_;
};

}  // namespace orchard
