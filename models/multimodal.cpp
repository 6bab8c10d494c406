#include "models/multimodal.h"

#include "kernels/embedding/embedding.h"
#include "models/tensor_parallel.h"

namespace orchard {

MultimodalModel::MultimodalModel(ParameterStore& store, const ModelConfig& config)
    : config_((config.validate(), config)),
      embedding_([&] {
        if (config.has_vision()) {
          vision_.emplace(store, config.vision, config.recompute);
          connector_.emplace(store, config);
        }
        return &store.declare({.name = "embedding",
                               .shape = {config.decoder.vocabulary, config.decoder.hidden},
                               .weight_decay = WeightDecay::yes,
                               .sharding = {.tensor_dim = 0}});
      }()),
      decoder_(store, config.decoder, config.recompute),
      head_(*embedding_) {}

Tensor MultimodalModel::embed(Pass& pass, Saved& saved) const {
  const DeviceBatch& batch = pass.batch;
  const DType dtype = embedding_->value.dtype();
  ConstTensor visual;
  if (batch.tiles > 0) {
    require(
        vision_.has_value(),
        "the batch holds {} picture tiles, but the model has no vision tower (vision.layers = 0)",
        batch.tiles);
    saved.vision.emplace();
    saved.connector.emplace();
    const std::int64_t rows = batch.tiles * (config_.vision.patches() + 1);
    saved.d_features = pass.allocate(dtype, {rows, config_.vision.width});
    saved.d_visual =
        pass.allocate(dtype, {batch.tiles * config_.connector.tokens(), config_.decoder.hidden});
    visual = connector_->forward(pass, vision_->forward(pass, batch.patches, *saved.vision),
                                 *saved.connector);
  } else {
    saved.vision.reset();
    saved.connector.reset();
  }
  const Tensor x = pass.allocate(dtype, {local_rows(pass, batch.rows), config_.decoder.hidden});
  // Every row is one rank's: the sum is exact in any type.
  RowSum sum(pass, batch.rows, x, dtype);
  const bool is_first = tensor_place(pass).index == 0;
  run(pass.stream, EmbeddingForward{.table = embedding_->value,
                                    .visual = is_first ? visual : ConstTensor(),
                                    .sources = batch.sources,
                                    .shard = shard_of_vocabulary(*embedding_),
                                    .y = sum.part()});
  sum.finish();
  return x;
}

void MultimodalModel::forward(Pass& pass, Saved& saved, Purpose purpose) const {
  const Tensor h = decoder_.forward(pass, embed(pass, saved), saved.decoder);
  head_.forward(pass, h, saved.head, purpose);
}

void MultimodalModel::backward(Pass& pass, Saved& saved) const {
  const DType dtype = embedding_->value.dtype();
  const std::int64_t rows = pass.batch.rows;
  const Tensor d_h = pass.allocate(dtype, {local_rows(pass, rows), config_.decoder.hidden});
  head_.backward_input(pass, saved.head, d_h);
  const Tensor d_x = decoder_.backward(pass, d_h, saved.decoder);
  run(pass.stream, EmbeddingBackward{.d_y = gather_rows(pass, d_x, rows),
                                     .sources = pass.batch.sources,
                                     .shard = shard_of_vocabulary(*embedding_),
                                     .d_table = embedding_->gradient,
                                     .d_visual = saved.vision ? saved.d_visual : Tensor()});
  // Head and lookup share the table, and the head's part came with forward.
  pass.gradients_final_from(embedding_->declared);
  if (!saved.vision) return;
  connector_->backward(pass, saved.d_visual, *saved.connector, saved.d_features);
  vision_->backward(pass, saved.d_features, *saved.vision);
}

Tensor MultimodalModel::forward_cached(Pass& pass, std::vector<KeyValueCache>& caches,
                                       ConstTensor key_offsets) const {
  Saved saved;
  return head_.logits(pass, decoder_.forward_cached(pass, embed(pass, saved), caches, key_offsets));
}

}  // namespace orchard
