#include "models/config.h"

#include "kernels/core/error.h"

namespace orchard {
namespace {

void require_positive(std::string_view name, std::int64_t value) {
  require(value > 0, "{} = {}: must be positive", name, value);
}

void validate(const VisionConfig& v) {
  require_positive("vision.width", v.width);
  require_positive("vision.heads", v.heads);
  require_positive("vision.mlp_width", v.mlp_width);
  require_positive("vision.patch", v.patch);
  require(v.side > 0 && v.side % v.patch == 0,
          "vision.side = {}: must be a multiple of vision.patch = {}", v.side, v.patch);
  require(v.width % v.heads == 0, "vision.width = {}: must be a multiple of vision.heads = {}",
          v.width, v.heads);
  require(v.features != FeatureLayer::penultimate || v.layers >= 2,
          "vision.features = penultimate needs vision.layers >= 2, not {}", v.layers);
}

void validate(const DecoderConfig& d) {
  require_positive("decoder.layers", d.layers);
  require_positive("decoder.hidden", d.hidden);
  require_positive("decoder.ffn", d.ffn);
  require_positive("decoder.kv_heads", d.kv_heads);
  require_positive("decoder.max_positions", d.max_positions);
  require(d.vocabulary >= 16, "decoder.vocabulary = {}: too small for the special tokens",
          d.vocabulary);
  require(d.heads > 0 && d.heads % d.kv_heads == 0,
          "decoder.heads = {}: must be a multiple of decoder.kv_heads = {}", d.heads, d.kv_heads);
  require(d.head_dim > 0 && d.head_dim % 2 == 0 && d.head_dim <= 256,
          "decoder.head_dim = {}: must be even (rotary pairs) and at most 256", d.head_dim);
  if (d.moe.experts == 0) return;
  require(d.moe.top_k >= 1 && d.moe.top_k <= d.moe.experts,
          "moe.top_k = {}: must lie between 1 and moe.experts = {}", d.moe.top_k, d.moe.experts);
  require_positive("moe.every", d.moe.every);
  require(d.moe.every <= d.layers,
          "moe.every = {}: larger than decoder.layers = {}, so no layer would be sparse",
          d.moe.every, d.layers);
  require(d.moe.capacity_factor >= 0,
          "moe.capacity_factor = {}: must be positive, or 0 for dropless", d.moe.capacity_factor);
  require(d.ffn * d.hidden % 32 == 0,
          "decoder.ffn · decoder.hidden = {}: experts need a multiple of 32", d.ffn * d.hidden);
}

}  // namespace

std::int64_t dense_backbone_parameters(const DecoderConfig& d) {
  const std::int64_t attention =
      d.hidden * d.head_dim * (2 * d.heads + 2 * d.kv_heads) + 2 * d.head_dim;
  const std::int64_t layer = attention + 3 * d.hidden * d.ffn + 2 * d.hidden;
  return d.layers * layer + d.hidden;
}

void ModelConfig::validate() const {
  orchard::validate(decoder);
  if (!has_vision()) return;
  orchard::validate(vision);
  require_positive("connector.hidden", connector.hidden);
  require_positive("connector.depth", connector.depth);
  require_positive("connector.out_side", connector.out_side);
}

int link_count(const ModelConfig& model) {
  // Stem, blocks, output and connector; lookup, layers, final norm and head.
  const std::int64_t tower = model.has_vision() ? model.vision.active_layers() + 3 : 0;
  return static_cast<int>(tower + model.decoder.layers + 3);
}

}  // namespace orchard
