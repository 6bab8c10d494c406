// What the links of the model's chain are. Links of one kind compute alike, so that they cost alike.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "models/config.h"

namespace orchard {

enum class LinkKind : std::uint8_t {
  stem,  // patches to rows of the vision tower
  vision_block,
  vision_norm,  // the tower's output
  connector,
  lookup,
  dense_layer,  // of the decoder
  sparse_layer,
  final_norm,
  head,  // logits and losses
};

inline constexpr LinkKind link_kind_list[] = {
    LinkKind::stem,         LinkKind::vision_block, LinkKind::vision_norm,
    LinkKind::connector,    LinkKind::lookup,       LinkKind::dense_layer,
    LinkKind::sparse_layer, LinkKind::final_norm,   LinkKind::head};

// "vision block".
std::string_view name_of(LinkKind kind);

// Of every link, in order: link_count(model) of them.
std::vector<LinkKind> link_kinds(const ModelConfig& model);

}  // namespace orchard
