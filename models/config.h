// The numbers that define a model. Values come from a recipe; validate() names the rule that a bad
// one breaks.
#pragma once

#include <cstdint>

#include "kernels/core/dtype.h"
#include "kernels/router/router.h"

namespace orchard {

enum class FeatureLayer : std::uint8_t {
  post_norm,    // output of the last block after ln_post
  last,         // output of the last block before ln_post
  penultimate,  // output of the block before the last
};

// CLIP ViT (mm15.md §1.2: ViT-H/14 is 32 layers of width 1280).
struct VisionConfig {
  std::int64_t layers = 0;  // 0: no vision tower, a text-only model
  std::int64_t width = 0;
  std::int64_t heads = 0;
  std::int64_t mlp_width = 0;
  std::int64_t patch = 14;  // pixels a side
  std::int64_t side = 0;    // pixels a side of a tile, a multiple of patch
  FeatureLayer features = FeatureLayer::post_norm;

  std::int64_t grid() const { return side / patch; }        // patches a side
  std::int64_t patches() const { return grid() * grid(); }  // of a tile, class token apart
  std::int64_t patch_values() const { return 3 * patch * patch; }
  // Blocks that run: all but the last where features come from the one before it.
  std::int64_t active_layers() const {
    return layers - (features == FeatureLayer::penultimate ? 1 : 0);
  }
};

// C-Abstractor (Cha et al. 2023; three bottlenecks, pool, three bottlenecks, two-layer readout).
struct ConnectorConfig {
  std::int64_t hidden = 0;
  std::int64_t depth = 3;      // bottlenecks on either side of the pooling
  std::int64_t out_side = 12;  // visual tokens a side: 12 x 12 = 144 per tile

  std::int64_t tokens() const { return out_side * out_side; }
};

struct MoeConfig {
  std::int64_t experts = 0;  // 0: dense
  std::int64_t every = 2;    // the last layer of each group of `every` is sparse
  int top_k = 2;
  float capacity_factor = 0;  // 0: dropless
  BalanceCounts balance_counts = BalanceCounts::first_choice;
  double balance_weight = 0.01;
  double z_weight = 0.001;
};

struct DecoderConfig {
  std::int64_t layers = 0;
  std::int64_t hidden = 0;
  std::int64_t ffn = 0;
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t vocabulary = 0;
  std::int64_t max_positions = 0;  // longest document
  double rope_theta = 5e5;
  MoeConfig moe;

  bool is_sparse(std::int64_t layer) const {
    return moe.experts > 0 && layer % moe.every == moe.every - 1;
  }
};

// Non-embedding parameters of the decoder with every feed-forward dense: the N of the learning-rate
// law.
std::int64_t dense_backbone_parameters(const DecoderConfig& decoder);

enum class Recompute : std::uint8_t {
  none,
  blocks,  // keep only the input of each transformer block and run its forward again in backward
};

struct ModelConfig {
  VisionConfig vision;
  ConnectorConfig connector;
  DecoderConfig decoder;
  Recompute recompute = Recompute::none;

  bool has_vision() const { return vision.layers > 0; }
  // Throws Error naming the dimension, its value and the rule.
  void validate() const;
};

// Of the chain that MultimodalModel is (models/chain.h).
int link_count(const ModelConfig& model);

}  // namespace orchard
