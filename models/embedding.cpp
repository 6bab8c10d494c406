#include "models/embedding.h"

#include "kernels/embedding/embedding.h"
#include "models/head.h"
#include "models/tensor_parallel.h"

namespace orchard {

Residual TokenEmbedding::forward(Pass& pass, const Residual& visual, Saved&) const {
  const std::int64_t rows = pass.batch.rows;
  const DType dtype = table_->value.dtype();
  const Tensor x = pass.allocate(dtype, {local_rows(pass, rows), table_->value.dim(1)});
  // Every row is one rank's: the sum is exact in any type.
  RowSum sum(pass, rows, x, dtype);
  const bool is_first = tensor_place(pass).index == 0;
  run(pass.stream, EmbeddingForward{.table = table_->value,
                                    .visual = is_first ? visual.sum : ConstTensor(),
                                    .sources = pass.batch.sources,
                                    .shard = shard_of_vocabulary(*table_),
                                    .y = sum.part()});
  sum.finish();
  return {x, {}};
}

void TokenEmbedding::backward_input(Pass& pass, ConstTensor d_y, Saved&, Tensor d_visual) const {
  run(pass.stream, EmbeddingBackward{.d_y = gather_rows(pass, d_y, pass.batch.rows),
                                     .sources = pass.batch.sources,
                                     .shard = shard_of_vocabulary(*table_),
                                     .d_table = table_->gradient,
                                     .d_visual = d_visual});
}

}  // namespace orchard
