#include "models/flops.h"

#include "models/link_kind.h"

namespace orchard {
namespace {

// `products` with weights: backward costs twice as much. `attention`, products between activations:
// backward costs 2.5 times as much (five products for two).
FlopCounts counts(double products, double attention = 0) {
  return {.forward = products + attention,
          .training = 3 * products + 3.5 * attention,
          .weight_half = products};
}

FlopCounts of_stem(const VisionConfig& v, double tiles) {
  return counts(tiles * 2 * static_cast<double>(v.patches()) *
                static_cast<double>(v.patch_values()) * static_cast<double>(v.width));
}

FlopCounts of_vision_block(const VisionConfig& v, double tiles) {
  const auto width = static_cast<double>(v.width), rows = static_cast<double>(v.patches() + 1);
  return counts(
      tiles * 2 * rows * (4 * width * width + 2 * width * static_cast<double>(v.mlp_width)),
      tiles * 4 * rows * rows * width);
}

FlopCounts of_connector(const ModelConfig& model, double tiles) {
  const auto width = static_cast<double>(model.vision.width),
             hidden = static_cast<double>(model.decoder.hidden),
             c = static_cast<double>(model.connector.hidden),
             depth = static_cast<double>(model.connector.depth),
             fine = static_cast<double>(model.vision.patches()),
             coarse = static_cast<double>(model.connector.tokens());
  return counts(tiles * 2 * fine * (2 * width * c + (2 * depth - 1) * c * c) +
                tiles * 2 * coarse * (2 * depth * c * c + c * hidden + hidden * hidden));
}

FlopCounts of_layer(const DecoderConfig& d, LinkKind kind, const Workload& work) {
  const auto tokens = static_cast<double>(work.tokens), hidden = static_cast<double>(d.hidden),
             inner = static_cast<double>(d.heads * d.head_dim),
             kv = static_cast<double>(d.kv_heads * d.head_dim);
  const bool sparse = kind == LinkKind::sparse_layer;
  const double copies = sparse ? d.moe.top_k : 1;
  double products = 2 * tokens * hidden * (2 * inner + 2 * kv);
  products += 2 * tokens * copies * 3 * hidden * static_cast<double>(d.ffn);
  if (sparse) products += 2 * tokens * hidden * static_cast<double>(d.moe.experts);
  // 4·n²·d, halved by causality.
  return counts(products, 2 * tokens * work.document_length * inner);
}

FlopCounts of_link(const ModelConfig& model, LinkKind kind, const Workload& work) {
  const auto tiles = static_cast<double>(work.tiles);
  switch (kind) {
    case LinkKind::stem:
      return of_stem(model.vision, tiles);
    case LinkKind::vision_block:
      return of_vision_block(model.vision, tiles);
    case LinkKind::connector:
      return of_connector(model, tiles);
    case LinkKind::dense_layer:
    case LinkKind::sparse_layer:
      return of_layer(model.decoder, kind, work);
    case LinkKind::head:
      return counts(2 * static_cast<double>(work.targets) *
                    static_cast<double>(model.decoder.hidden) *
                    static_cast<double>(model.decoder.vocabulary));
    case LinkKind::vision_norm:
    case LinkKind::lookup:
    case LinkKind::final_norm:
      break;
  }
  return {};  // no products
}

}  // namespace

std::vector<FlopCounts> count_link_flops(const ModelConfig& model, const Workload& work) {
  std::vector<FlopCounts> links;
  for (const LinkKind kind : link_kinds(model)) links.push_back(of_link(model, kind, work));
  return links;
}

FlopCounts count_flops(const ModelConfig& model, const Workload& work) {
  FlopCounts sum;
  for (const FlopCounts& link : count_link_flops(model, work)) {
    sum.forward += link.forward;
    sum.training += link.training;
    sum.weight_half += link.weight_half;
  }
  return sum;
}

}  // namespace orchard
