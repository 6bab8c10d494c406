#include "models/saved_values.h"

#include "models/link_kind.h"

namespace orchard {
namespace {

SavedValues kept(double forward, double gradients) {
  return {.forward = forward, .backward = forward + gradients, .without_recompute = forward};
}

// A block of `rows`. What forward leaves is there again before the input half's gradients are. Until
// then a block that is recomputed keeps the two parts of its output.
SavedValues of_block(double rows, double width, double forward, double gradients,
                     Recompute recompute) {
  SavedValues values = kept(rows * forward, rows * gradients);
  if (recompute == Recompute::blocks) {
    values.forward = rows * 2 * width;
    values.backward += values.forward;
  }
  return values;
}

// Sum and value of two norms, the outputs of attention and feed-forward.
double stream_values(double width) {
  return 6 * width;
}

SavedValues of_vision_block(const ModelConfig& model, double rows) {
  const auto width = static_cast<double>(model.vision.width),
             mlp = static_cast<double>(model.vision.mlp_width);
  // q, k, v and what attention returns; the gradient of each, those of the stream between the parts,
  // of a norm's value and of the block's input.
  return of_block(rows, width, stream_values(width) + 4 * width + 2 * mlp,
                  3 * width + 4 * width + mlp, model.recompute);
}

SavedValues of_layer(const ModelConfig& model, LinkKind kind, double rows) {
  const DecoderConfig& d = model.decoder;
  const auto hidden = static_cast<double>(d.hidden), ffn = static_cast<double>(d.ffn),
             inner = static_cast<double>(d.heads * d.head_dim),
             kv = static_cast<double>(d.kv_heads * d.head_dim);
  // q and k before their norms and after, v, what attention returns.
  double forward = stream_values(hidden) + 3 * inner + 3 * kv;
  double gradients = 3 * hidden + 2 * inner + 2 * kv;
  if (kind == LinkKind::dense_layer) {
    forward += 3 * ffn;  // gate, up, product
    gradients += 2 * ffn;
  } else {
    const auto k = static_cast<double>(d.moe.top_k);
    // With the results of the experts. Where experts are on several ranks, with what arrived for them,
    // hidden more.
    forward += k * (hidden + 3 * ffn);
    gradients += k * (2 * hidden + 2 * ffn) + hidden;  // and the router's part
  }
  return of_block(rows, hidden, forward, gradients, model.recompute);
}

// Rows of a bottleneck whose shortcut is a product where the width changes.
SavedValues of_bottleneck(double rows, double in, double out) {
  const double shortcut = in == out ? 0 : out;
  return kept(rows * (10 * out + 2 * shortcut), rows * (7 * out + shortcut + in));
}

SavedValues of_connector(const ModelConfig& model, double tiles) {
  const auto width = static_cast<double>(model.vision.width),
             hidden = static_cast<double>(model.decoder.hidden),
             c = static_cast<double>(model.connector.hidden),
             fine = tiles * static_cast<double>(model.vision.patches()),
             coarse = tiles * static_cast<double>(model.connector.tokens());
  // The features, the pooled ones, three outputs of the readout.
  SavedValues sum = kept(fine * width + coarse * (c + 3 * hidden),
                         coarse * (hidden + c) + fine * c + fine * width);
  for (std::int64_t i = 0; i < model.connector.depth; ++i) {
    for (const SavedValues& one :
         {of_bottleneck(fine, i ? c : width, c), of_bottleneck(coarse, c, c)}) {
      sum.forward += one.forward;
      sum.backward += one.backward;
    }
  }
  sum.without_recompute = sum.forward;
  return sum;
}

SavedValues of_link(const ModelConfig& model, LinkKind kind, const Workload& work) {
  const auto tiles = static_cast<double>(work.tiles), tokens = static_cast<double>(work.tokens),
             width = static_cast<double>(model.vision.width),
             hidden = static_cast<double>(model.decoder.hidden),
             tower_rows = tiles * static_cast<double>(model.vision.patches() + 1);
  switch (kind) {
    case LinkKind::stem:  // patches, rows, norm
      return kept(3 * tower_rows * width, 2 * tower_rows * width);
    case LinkKind::vision_block:
      return of_vision_block(model, tower_rows);
    case LinkKind::vision_norm:
      return kept(2 * tower_rows * width, tower_rows * width);
    case LinkKind::connector:
      return of_connector(model, tiles);
    case LinkKind::lookup:
      return kept(tokens * hidden, 0);
    case LinkKind::dense_layer:
    case LinkKind::sparse_layer:
      return of_layer(model, kind, tokens);
    case LinkKind::final_norm:
      return kept(2 * tokens * hidden, tokens * hidden);
    case LinkKind::head:
      return kept(static_cast<double>(work.targets) * hidden, tokens * hidden);
  }
  return {};
}

}  // namespace

std::vector<SavedValues> count_saved_values(const ModelConfig& model, const Workload& work) {
  std::vector<SavedValues> links;
  for (const LinkKind kind : link_kinds(model)) links.push_back(of_link(model, kind, work));
  return links;
}

}  // namespace orchard
