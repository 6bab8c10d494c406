// The CLIP vision transformer (Radford et al. 2021, as open_clip builds it): patch embedding as a
// GEMM without bias, class token, learned positions, ln_pre, pre-norm blocks with quick-gelu,
// ln_post; class token dropped.
#pragma once

#include "models/feed_forward.h"
#include "models/transformer_block.h"

namespace orchard {

class VisionTransformer {
 public:
  using Block = TransformerBlock<LayerNorm, VisionMlp>;

  // Declares vision.patch_embedding [width, 3·patch²], vision.class_token [width], vision.positions
  // [patches + 1, width], vision.ln_pre.*, vision.layers.<l>.*, vision.ln_post.*.
  VisionTransformer(ParameterStore& store, const VisionConfig& config, Recompute recompute);

  struct Saved {
    Linear::Saved patch_linear;
    LayerNorm::Saved ln_pre, ln_post;
    std::vector<Block::Saved> blocks;
    std::vector<Arena::Mark> marks;
    Tensor d_stream[2];
  };

  // patches: [tiles, patches, patch_values]. Returns [tiles · (patches + 1), width], class tokens
  // included.
  ConstTensor forward(Pass& pass, ConstTensor patches, Saved& saved) const;
  // d_y of forward's result, its class rows zero. The pixels need no gradient.
  void backward(Pass& pass, ConstTensor d_y, Saved& saved) const;

 private:
  // Blocks that run: all but the last when features come from the penultimate block.
  std::size_t active_blocks() const;

  VisionConfig config_;
  Linear patch_embedding_;
  Parameter* class_token_;
  Parameter* positions_;
  LayerNorm ln_pre_;
  std::deque<Block> blocks_;
  LayerNorm ln_post_;
};

}  // namespace orchard
