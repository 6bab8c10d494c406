#include "models/embedding.h"

#include "kernels/embedding/embedding.h"

namespace orchard {

Residual TokenEmbedding::forward(Pass& pass, const Residual& visual, Saved&) const {
  const Tensor x = pass.allocate(table_->value.dtype(), {pass.batch.rows, table_->value.dim(1)});
  run(pass.stream,
      EmbeddingForward{
          .table = table_->value, .visual = visual.sum, .sources = pass.batch.sources, .y = x});
  return {x, {}};
}

void TokenEmbedding::backward_input(Pass& pass, ConstTensor d_y, Saved&, Tensor d_visual) const {
  run(pass.stream, EmbeddingBackward{.d_y = d_y,
                                     .sources = pass.batch.sources,
                                     .d_table = table_->gradient,
                                     .d_visual = d_visual});
}

}  // namespace orchard
