#include "models/link_kind.h"

namespace orchard {

std::string_view name_of(LinkKind kind) {
  switch (kind) {
    case LinkKind::stem:
      return "stem";
    case LinkKind::vision_block:
      return "vision block";
    case LinkKind::vision_norm:
      return "vision norm";
    case LinkKind::connector:
      return "connector";
    case LinkKind::lookup:
      return "lookup";
    case LinkKind::dense_layer:
      return "dense layer";
    case LinkKind::sparse_layer:
      return "sparse layer";
    case LinkKind::final_norm:
      return "final norm";
    case LinkKind::head:
      return "head";
  }
  return "?";
}

std::vector<LinkKind> link_kinds(const ModelConfig& model) {
  std::vector<LinkKind> kinds;
  if (model.has_vision()) {
    kinds.push_back(LinkKind::stem);
    for (std::int64_t block = 0; block < model.vision.active_layers(); ++block)
      kinds.push_back(LinkKind::vision_block);
    kinds.push_back(LinkKind::vision_norm);
    kinds.push_back(LinkKind::connector);
  }
  kinds.push_back(LinkKind::lookup);
  for (std::int64_t layer = 0; layer < model.decoder.layers; ++layer)
    kinds.push_back(model.decoder.is_sparse(layer) ? LinkKind::sparse_layer
                                                   : LinkKind::dense_layer);
  kinds.push_back(LinkKind::final_norm);
  kinds.push_back(LinkKind::head);
  return kinds;
}

}  // namespace orchard
