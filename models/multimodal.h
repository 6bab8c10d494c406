// The whole model: vision transformer -> C-Abstractor -> visual tokens among the text tokens ->
// decoder -> loss, as a chain of links that a pipeline may cut anywhere.
#pragma once

#include <memory>
#include <optional>

#include "models/connector.h"
#include "models/decoder.h"
#include "models/embedding.h"
#include "models/head.h"
#include "models/vision.h"

namespace orchard {

class MultimodalModel {
 public:
  // Declares every parameter in `store`: vision.*, connector.*, embedding [vocab, hidden],
  // decoder.*. `store` must outlive the model. Call store.allocate, then prepare, before the first
  // pass.
  MultimodalModel(ParameterStore& store, const ModelConfig& config);
  MultimodalModel(const MultimodalModel&) = delete;
  MultimodalModel& operator=(const MultimodalModel&) = delete;

  void prepare(Device& device, Stream& stream) { decoder_.prepare(device, stream); }

  using Saved = Chain::Saved;

  // The links in order: the tower's, the connector, the embedding, the decoder's, the head. There
  // are link_count(config()) of them.
  const Chain& chain() const { return chain_; }

  // Links [range.first, range.last) of the micro-batch pass.batch, see Chain::forward. After
  // Purpose::train, backward may follow.
  ConstTensor forward(Pass& pass, LinkRange range, ConstTensor x, Saved& saved) const;
  // The whole chain, and its backward, which adds the micro-batch's share of every gradient.
  void forward(Pass& pass, Saved& saved) const { forward(pass, chain_.whole(), {}, saved); }
  void backward(Pass& pass, Saved& saved) const { chain_.backward(pass, {}, saved, {}); }
  // Of a range, see Chain.
  void backward(Pass& pass, ConstTensor d_y, Saved& saved, Tensor d_x) const {
    chain_.backward(pass, d_y, saved, d_x);
  }
  void backward_input(Pass& pass, ConstTensor d_y, Saved& saved, Tensor d_x) const {
    chain_.backward_input(pass, d_y, saved, d_x);
  }
  void backward_weight(Pass& pass, Saved& saved) const { chain_.backward_weight(pass, saved); }

  // What forward left of the losses. Of a range with the head: f32 [padded targets], in the order of
  // batch.target_rows; else absent.
  ConstTensor losses(const Saved& saved) const;
  // Of the sparse layers of the range, in layer order.
  std::vector<RouterStatistics> router_statistics(const Saved& saved) const {
    return Decoder::router_statistics(chain_, saved);
  }
  // How many sparse layers come before the range.
  std::size_t first_sparse_layer(const Saved& saved) const {
    return Decoder::sparse_layers(chain_, {0, saved.range.first});
  }

  // Generation: embeds pass.batch's rows (and pictures), runs them through the caches, returns f32
  // logits [1, vocab] of the last row. Tensor ranks, and those that hold experts together, do it
  // together.
  Tensor forward_cached(Pass& pass, std::vector<KeyValueCache>& caches,
                        ConstTensor key_offsets) const;

  const Decoder& decoder() const { return decoder_; }
  const ModelConfig& config() const { return config_; }
  DType dtype() const { return store_.dtype(); }  // of values and of the residual stream

 private:
  const ParameterStore& store_;
  ModelConfig config_;
  std::optional<VisionTransformer> vision_;
  std::optional<Connector> connector_;
  Parameter* table_;
  TokenEmbedding embedding_;
  Decoder decoder_;
  LanguageModelHead head_;
  Chain chain_;
  int lookup_ = 0;  // link of the embedding
};

}  // namespace orchard
