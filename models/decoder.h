// The decoder-only language model: blocks, dense or sparse, final norm. Embedding and head are its
// neighbours.
#pragma once

#include <deque>
#include <variant>

#include "models/chain.h"
#include "models/feed_forward.h"
#include "models/moe.h"
#include "models/transformer_block.h"

namespace orchard {

// The norm between the last block and the head.
class FinalNorm {
 public:
  FinalNorm(ParameterStore& store, const std::string& name, std::int64_t width)
      : norm_(store, name, width) {}

  using Saved = RmsNorm::Saved;

  Residual forward(Pass& pass, const Residual& x, Saved& saved) const {
    return {norm_.forward(pass, x, saved), {}};
  }
  void backward_input(Pass& pass, ConstTensor d_y, Saved& saved, Tensor d_x) const {
    norm_.backward(pass, d_y, {}, saved, d_x);
  }
  void backward_weight(Pass&, Saved&) const {}

 private:
  RmsNorm norm_;
};

class Decoder {
 public:
  using DenseBlock = TransformerBlock<RmsNorm, SwiGlu>;
  using SparseBlock = TransformerBlock<RmsNorm, MixtureOfExperts>;

  // Declares decoder.layers.<l>.* and decoder.final_norm, each block for a link of its own.
  Decoder(ParameterStore& store, const DecoderConfig& config, Recompute recompute);
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;

  // Builds the rotation table on the device. Once, before the first pass.
  void prepare(Device& device, Stream& stream);

  // Blocks, final norm. The links refer to this object.
  void append_to(Chain& chain) const;

  // Of the sparse layers, in layer order.
  std::vector<const Parameter*> routers() const;
  // Statistics of those sparse layers that a micro-batch has passed, in layer order.
  static std::vector<RouterStatistics> router_statistics(const Chain& chain,
                                                         const Chain::Saved& saved);

  // How many there are in a range of links.
  static std::size_t sparse_layers(const Chain& chain, LinkRange range);

  // Generation: one cache a layer; x holds the new tokens' embeddings.
  std::vector<KeyValueCache> make_caches(Arena& arena, DType dtype, std::int64_t max_tokens) const;
  ConstTensor forward_cached(Pass& pass, ConstTensor x, std::vector<KeyValueCache>& caches,
                             ConstTensor key_offsets) const;

 private:
  DecoderConfig config_;
  Buffer rotation_memory_;
  ConstTensor rotation_;  // f32 [max_positions, head_dim]; blocks refer to it
  std::deque<std::variant<DenseBlock, SparseBlock>> blocks_;
  FinalNorm final_norm_;
};

}  // namespace orchard
