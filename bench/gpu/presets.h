// The six published sizes, read from their recipes (launch/recipes), and how much one forward pass of
// them has in bench_gpu: every shape there follows from these.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "models/batch.h"
#include "models/config.h"

namespace orchard::bench {

// The pictures of a pass, tiles of one side.
struct TileBatch {
  std::int64_t tiles = 0;
  std::int64_t side = 0, grid = 0;  // pixels and patches a side of a tile

  std::int64_t patches() const { return tiles * grid * grid; }
  std::int64_t tower_rows() const { return tiles * (grid * grid + 1); }  // class tokens included
};

struct Preset {
  std::string name;
  ModelConfig model;
  std::int64_t length = 0;  // rows of a packed sequence
  // Of stage 1 as many tiles as a sequence may have pictures; of the later stages' side those of
  // the picture with the most.
  std::vector<TileBatch> pictures;

  // A micro-batch of two: 8192 tokens, as the figures in docs/notes are of. The recipes have one.
  static constexpr std::int64_t sequences = 2;
  std::int64_t tokens() const { return sequences * length; }
  std::int64_t visual_tokens() const { return pictures[0].tiles * model.connector.tokens(); }
  // Tokens with a target: half of them, in whole chunks of logits.
  std::int64_t targets() const;
  bool is_sparse() const { return model.decoder.moe.experts > 0; }
};

// 1b, 1b-moe, 3b, 3b-moe, 7b, 30b.
const std::vector<Preset>& presets();

// Rows of logits that a GPU computes at a time, of a vocabulary or a rank's share of it: as
// models/head.cpp has it.
constexpr std::int64_t logits_rows(std::int64_t columns) {
  const std::int64_t rows = (std::int64_t{64} << 20) / columns;
  return std::min<std::int64_t>(rows / target_multiple * target_multiple, 16384);
}

inline std::int64_t Preset::targets() const {
  const std::int64_t chunk = logits_rows(model.decoder.vocabulary);
  return tokens() / 2 / chunk * chunk;
}

// What value(preset) gives, each once, in the order of the presets.
template <class Value>
auto each_once(const Value& value) {
  std::vector<decltype(value(presets().front()))> all;
  for (const Preset& preset : presets()) {
    const auto found = value(preset);
    if (std::find(all.begin(), all.end(), found) == all.end()) all.push_back(found);
  }
  return all;
}

inline std::vector<std::int64_t> hidden_widths() {
  return each_once([](const Preset& p) { return p.model.decoder.hidden; });
}

}  // namespace orchard::bench
