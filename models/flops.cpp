#include "models/flops.h"

namespace orchard {
namespace {

// `products` with weights: backward costs twice as much. `attention`, products between activations:
// backward costs 2.5 times as much (five products for two).
FlopCounts counts(double products, double attention = 0) {
  return {.forward = products + attention, .training = 3 * products + 3.5 * attention};
}

void add_tower(std::vector<FlopCounts>& links, const ModelConfig& model, double tiles) {
  const VisionConfig& v = model.vision;
  const auto width = static_cast<double>(v.width), patches = static_cast<double>(v.patches());
  const double rows = patches + 1;
  links.push_back(counts(tiles * 2 * patches * static_cast<double>(v.patch_values()) * width));
  const FlopCounts block =
      counts(tiles * 2 * rows * (4 * width * width + 2 * width * static_cast<double>(v.mlp_width)),
             tiles * 4 * rows * rows * width);
  links.insert(links.end(), static_cast<std::size_t>(v.active_layers()), block);
  links.emplace_back();  // the norm after the blocks
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

FlopCounts of_layer(const DecoderConfig& d, std::int64_t layer, const Workload& work) {
  const auto tokens = static_cast<double>(work.tokens), hidden = static_cast<double>(d.hidden),
             inner = static_cast<double>(d.heads * d.head_dim),
             kv = static_cast<double>(d.kv_heads * d.head_dim);
  const double copies = d.is_sparse(layer) ? d.moe.top_k : 1;
  double products = 2 * tokens * hidden * (2 * inner + 2 * kv);
  products += 2 * tokens * copies * 3 * hidden * static_cast<double>(d.ffn);
  if (d.is_sparse(layer)) products += 2 * tokens * hidden * static_cast<double>(d.moe.experts);
  // 4·n²·d, halved by causality.
  return counts(products, 2 * tokens * work.document_length * inner);
}

}  // namespace

std::vector<FlopCounts> count_link_flops(const ModelConfig& model, const Workload& work) {
  const DecoderConfig& d = model.decoder;
  std::vector<FlopCounts> links;
  if (model.has_vision()) {
    add_tower(links, model, static_cast<double>(work.tiles));
    links.push_back(of_connector(model, static_cast<double>(work.tiles)));
  }
  links.emplace_back();  // the lookup
  for (std::int64_t l = 0; l < d.layers; ++l) links.push_back(of_layer(d, l, work));
  links.emplace_back();  // the final norm
  links.push_back(counts(2 * static_cast<double>(work.targets) * static_cast<double>(d.hidden) *
                         static_cast<double>(d.vocabulary)));
  return links;
}

FlopCounts count_flops(const ModelConfig& model, const Workload& work) {
  FlopCounts sum;
  for (const FlopCounts& link : count_link_flops(model, work)) {
    sum.forward += link.forward;
    sum.training += link.training;
  }
  return sum;
}

}  // namespace orchard
