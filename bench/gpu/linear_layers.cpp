#include "bench/gpu/linear_layers.h"

#include <algorithm>

#include "bench/gpu/presets.h"

namespace orchard::bench {
namespace {

class Layers {
 public:
  void add(LinearLayer layer) {
    const auto same = [&](const LinearLayer& other) { return other.has_shape_of(layer); };
    if (std::none_of(all_.begin(), all_.end(), same)) all_.push_back(std::move(layer));
  }
  std::vector<LinearLayer> take() { return std::move(all_); }

 private:
  std::vector<LinearLayer> all_;
};

void add_decoder(Layers& layers, const Preset& p) {
  const DecoderConfig& d = p.model.decoder;
  const std::int64_t tokens = p.tokens(), hidden = d.hidden;
  const std::int64_t inner = d.heads * d.head_dim, keys = d.kv_heads * d.head_dim;
  layers.add({p.name + ".q_o", tokens, hidden, inner});
  layers.add({p.name + ".o", tokens, inner, hidden});
  layers.add({p.name + ".k_v", tokens, hidden, keys});
  layers.add({p.name + ".ffn_up", tokens, hidden, d.ffn});
  layers.add({p.name + ".ffn_down", tokens, d.ffn, hidden});
  layers.add(
      {p.name + ".head", logits_rows(d.vocabulary), hidden, d.vocabulary, DType::bf16, DType::f32});
  // Routers read the fp32 masters.
  if (p.is_sparse())
    layers.add({p.name + ".router", tokens, hidden, d.moe.experts, DType::f32, DType::f32});
}

void add_tower(Layers& layers, const Preset& p) {
  const VisionConfig& v = p.model.vision;
  const TileBatch& tiles = p.pictures[0];
  layers.add({.name = "vit.patches",
              .rows = tiles.patches(),
              .in = v.patch_values(),
              .out = v.width,
              .directions = {Direction::forward, Direction::weight_gradient}});
  const auto add = [&](const char* name, std::int64_t in, std::int64_t out) {
    layers.add({.name = name, .rows = tiles.tower_rows(), .in = in, .out = out, .has_bias = true});
  };
  add("vit.attention", v.width, v.width);
  add("vit.mlp_up", v.width, v.mlp_width);
  add("vit.mlp_down", v.mlp_width, v.width);
}

// Bottlenecks before the pooling (the first of which narrows the tower's width) and behind it, the
// excitation of each tile (a quarter of a bottleneck's input), and the readout to the decoder.
void add_connector(Layers& layers, const Preset& p) {
  const TileBatch& pictures = p.pictures[0];
  const std::int64_t width = p.model.vision.width, hidden = p.model.connector.hidden;
  const std::int64_t fine = pictures.patches(), coarse = p.visual_tokens();
  layers.add({"connector.narrow", fine, width, hidden});
  layers.add({"connector.fine", fine, hidden, hidden});
  layers.add({"connector.coarse", coarse, hidden, hidden});
  const auto add = [&](const std::string& name, std::int64_t rows, std::int64_t in,
                       std::int64_t out) {
    layers.add({.name = name, .rows = rows, .in = in, .out = out, .has_bias = true});
  };
  for (const std::int64_t in : {width, hidden}) {
    const std::int64_t squeezed = (in + 2) / 4;
    add(fmt::format("connector.squeeze_{}", squeezed), pictures.tiles, hidden, squeezed);
    add(fmt::format("connector.expand_{}", squeezed), pictures.tiles, squeezed, hidden);
  }
  const std::int64_t decoder = p.model.decoder.hidden;
  add(p.name + ".readout_in", coarse, hidden, decoder);
  add(p.name + ".readout_out", coarse, decoder, decoder);
}

}  // namespace

std::vector<LinearLayer> linear_layers() {
  Layers layers;
  for (const Preset& preset : presets()) add_decoder(layers, preset);
  for (const Preset& preset : presets()) add_tower(layers, preset);
  for (const Preset& preset : presets()) add_connector(layers, preset);
  return layers.take();
}

std::vector<LinearLayer> ffn_gates() {
  Layers layers;
  for (const Preset& p : presets())
    layers.add({p.name + ".ffn_gate", p.tokens(), p.model.decoder.hidden, p.model.decoder.ffn});
  return layers.take();
}

}  // namespace orchard::bench
