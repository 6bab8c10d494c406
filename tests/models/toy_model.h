// The smallest model that has every part: tiles, a connector, attention with grouped heads, a dense
// and a sparse layer.
#pragma once

#include "models/config.h"

namespace orchard::testing {

inline ModelConfig toy_model() {
  ModelConfig config;
  config.vision = {.layers = 1, .width = 16, .heads = 2, .mlp_width = 24, .patch = 2, .side = 6};
  config.connector = {.hidden = 12, .depth = 1, .out_side = 2};
  config.decoder = {.layers = 2,
                    .hidden = 16,
                    .ffn = 32,
                    .heads = 4,
                    .kv_heads = 2,
                    .head_dim = 8,
                    .vocabulary = 40,
                    .max_positions = 16,
                    .moe = {.experts = 4, .every = 2}};
  return config;
}

}  // namespace orchard::testing
