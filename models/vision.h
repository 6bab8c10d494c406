// The CLIP vision transformer (Radford et al. 2021, as open_clip builds it): patch embedding as a
// GEMM without bias, class token, learned positions, ln_pre, pre-norm blocks with quick-gelu,
// ln_post; class token dropped by the connector.
#pragma once

#include <deque>

#include "models/chain.h"
#include "models/feed_forward.h"
#include "models/transformer_block.h"

namespace orchard {

// Pixels to the tower's stream: batch.patches [tiles, patches, patch_values] to
// [tiles · (patches + 1), width], class tokens first.
class VisionStem {
 public:
  VisionStem(ParameterStore& store, const VisionConfig& config);

  struct Saved {
    Linear::Saved patch_linear;
    LayerNorm::Saved ln_pre;
  };

  Residual forward(Pass& pass, const Residual& x, Saved& saved) const;
  // Pixels need no gradient: d_x is absent.
  void backward_input(Pass& pass, ConstTensor d_y, Saved& saved, Tensor d_x) const;
  void backward_weight(Pass& pass, Saved& saved) const;

 private:
  VisionConfig config_;
  Linear patch_embedding_;
  Parameter* class_token_;
  Parameter* positions_;
  LayerNorm ln_pre_;
};

// What the connector reads of the tower's last stream.
class VisionOutput {
 public:
  VisionOutput(ParameterStore& store, const VisionConfig& config);

  using Saved = LayerNorm::Saved;

  Residual forward(Pass& pass, const Residual& x, Saved& saved) const;
  void backward_input(Pass& pass, ConstTensor d_y, Saved& saved, Tensor d_x) const;
  void backward_weight(Pass&, Saved&) const {}

 private:
  FeatureLayer features_;
  LayerNorm ln_post_;
};

class VisionTransformer {
 public:
  using Block = TransformerBlock<LayerNorm, VisionMlp>;

  // Declares vision.patch_embedding [width, 3·patch²], vision.class_token [width], vision.positions
  // [patches + 1, width], vision.ln_pre.*, vision.layers.<l>.*, vision.ln_post.*.
  VisionTransformer(ParameterStore& store, const VisionConfig& config, Recompute recompute);
  VisionTransformer(const VisionTransformer&) = delete;
  VisionTransformer& operator=(const VisionTransformer&) = delete;

  // Stem, blocks, output. The links refer to this object.
  void append_to(Chain& chain) const;

 private:
  VisionConfig config_;
  VisionStem stem_;
  std::deque<Block> blocks_;
  VisionOutput output_;
};

}  // namespace orchard
