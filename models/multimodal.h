// The whole model: vision transformer -> C-Abstractor -> visual tokens among the text tokens ->
// decoder -> loss.
#pragma once

#include <memory>
#include <optional>

#include "models/connector.h"
#include "models/decoder.h"
#include "models/head.h"
#include "models/vision.h"

namespace orchard {

class MultimodalModel {
 public:
  // Declares every parameter in `store`: vision.*, connector.*, embedding [vocab, hidden],
  // decoder.*. `store` must outlive the model. Call store.allocate, then prepare, before the first
  // pass.
  MultimodalModel(ParameterStore& store, const ModelConfig& config);

  void prepare(Device& device, Stream& stream) { decoder_.prepare(device, stream); }

  struct Saved {
    std::optional<VisionTransformer::Saved> vision;  // absent without pictures
    std::optional<Connector::Saved> connector;
    Tensor d_features, d_visual;  // gradients of the tower's and the connector's output
    Decoder::Saved decoder;
    LanguageModelHead::Saved head;
  };

  // Losses of the micro-batch pass.batch are in saved.head.losses and the router statistics; for
  // Purpose::train, backward may follow.
  void forward(Pass& pass, Saved& saved, Purpose purpose) const;
  // Adds the micro-batch's share of every gradient.
  void backward(Pass& pass, Saved& saved) const;

  // Generation: embeds pass.batch's rows (and pictures), runs them through the caches, returns f32
  // logits [rows, vocab].
  Tensor forward_cached(Pass& pass, std::vector<KeyValueCache>& caches,
                        ConstTensor key_offsets) const;

  const Decoder& decoder() const { return decoder_; }
  const ModelConfig& config() const { return config_; }

 private:
  Tensor embed(Pass& pass, Saved& saved) const;

  ModelConfig config_;
  std::optional<VisionTransformer> vision_;
  std::optional<Connector> connector_;
  Parameter* embedding_;
  Decoder decoder_;
  LanguageModelHead head_;
};

}  // namespace orchard
