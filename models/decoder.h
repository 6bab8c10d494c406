// The decoder-only language model: blocks, dense or sparse, final norm. Embedding and head are its
// neighbours.
#pragma once

#include <deque>
#include <variant>

#include "models/feed_forward.h"
#include "models/moe.h"
#include "models/transformer_block.h"

namespace orchard {

class Decoder {
 public:
  using DenseBlock = TransformerBlock<RmsNorm, SwiGlu>;
  using SparseBlock = TransformerBlock<RmsNorm, MixtureOfExperts>;

  // Declares decoder.layers.<l>.* and decoder.final_norm.
  Decoder(ParameterStore& store, const DecoderConfig& config, Recompute recompute);
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;

  // Builds the rotation table on the device. Once, before the first pass.
  void prepare(Device& device, Stream& stream);

  struct Saved {
    std::vector<std::variant<DenseBlock::Saved, SparseBlock::Saved>> blocks;
    std::vector<Arena::Mark> marks;  // arena before each block
    RmsNorm::Saved final_norm;
    Tensor d_stream[2];  // gradient of the residual stream, alternating between blocks
  };

  // x: [local rows, hidden] embedded tokens (see tensor_parallel.h). Returns the normalised output,
  // likewise.
  Tensor forward(Pass& pass, ConstTensor x, Saved& saved) const;
  // Both halves of each block in turn, last block first, giving memory back block by block. Returns
  // d_x.
  Tensor backward(Pass& pass, ConstTensor d_y, Saved& saved) const;

  // Statistics of the sparse layers, in layer order.
  std::vector<RouterStatistics> router_statistics(const Saved& saved) const;
  std::vector<const Parameter*> routers() const;

  // Generation: one cache a layer; x holds the new tokens' embeddings.
  std::vector<KeyValueCache> make_caches(Arena& arena, DType dtype, std::int64_t max_tokens) const;
  Tensor forward_cached(Pass& pass, ConstTensor x, std::vector<KeyValueCache>& caches,
                        ConstTensor key_offsets) const;

 private:
  DecoderConfig config_;
  Buffer rotation_memory_;
  ConstTensor rotation_;  // f32 [max_positions, head_dim]; blocks refer to it
  std::deque<std::variant<DenseBlock, SparseBlock>> blocks_;
  RmsNorm final_norm_;
};

}  // namespace orchard
