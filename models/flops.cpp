#include "models/flops.h"

namespace orchard {

FlopCounts count_flops(const ModelConfig& model, const Workload& work) {
  const DecoderConfig& d = model.decoder;
  const auto tokens = static_cast<double>(work.tokens);
  double products = 0;  // with weights: backward costs twice as much
  double attention =
      0;  // between activations: backward costs 2.5 times as much (five products for two)

  const double inner = static_cast<double>(d.heads * d.head_dim),
               kv = static_cast<double>(d.kv_heads * d.head_dim);
  const auto hidden = static_cast<double>(d.hidden);
  for (std::int64_t l = 0; l < d.layers; ++l) {
    products += 2 * tokens * hidden * (2 * inner + 2 * kv);
    attention += 2 * tokens * work.document_length * inner;  // 4·n²·d halved by causality
    const double copies = d.is_sparse(l) ? d.moe.top_k : 1;
    products += 2 * tokens * copies * 3 * hidden * static_cast<double>(d.ffn);
    if (d.is_sparse(l)) products += 2 * tokens * hidden * static_cast<double>(d.moe.experts);
  }
  products += 2 * static_cast<double>(work.targets) * hidden * static_cast<double>(d.vocabulary);

  if (model.has_vision() && work.tiles > 0) {
    const VisionConfig& v = model.vision;
    const auto tiles = static_cast<double>(work.tiles), width = static_cast<double>(v.width);
    const auto rows = static_cast<double>(v.patches() + 1);
    products += tiles * 2 * static_cast<double>(v.patches() * v.patch_values()) * width;
    const auto blocks =
        static_cast<double>(v.layers - (v.features == FeatureLayer::penultimate ? 1 : 0));
    products += tiles * blocks * 2 * rows *
                (4 * width * width + 2 * width * static_cast<double>(v.mlp_width));
    attention += tiles * blocks * 4 * rows * rows * width;
    const auto c = static_cast<double>(model.connector.hidden);
    const auto depth = static_cast<double>(model.connector.depth);
    const auto fine = static_cast<double>(v.patches()),
               coarse = static_cast<double>(model.connector.tokens());
    products += tiles * 2 * fine * (2 * width * c + (2 * depth - 1) * c * c);
    products += tiles * 2 * coarse * (2 * depth * c * c + c * hidden + hidden * hidden);
  }
  return {.forward = products + attention, .training = 3 * products + 3.5 * attention};
}

}  // namespace orchard
