#include "bench/gpu/presets.h"

#include "launch/options.h"

namespace orchard::bench {
namespace {

std::int64_t most_tiles(const StageConfig& stage) {
  switch (stage.tiling.mode) {
    case TilingMode::whole:
      return stage.max_pictures;
    case TilingMode::fixed:
      return 2 * 2 + 1;
    case TilingMode::dynamic:
      return stage.tiling.max_tiles + 1;
  }
  return 0;
}

Preset read(const std::string& name) {
  const RunConfig run = load_recipe(name);
  Preset preset{.name = name, .model = run.model, .length = run.stages.front().sequence_length};
  for (const StageConfig& stage : run.stages) {
    auto same = std::find_if(preset.pictures.begin(), preset.pictures.end(),
                             [&](const TileBatch& p) { return p.side == stage.side; });
    if (same == preset.pictures.end())
      same = preset.pictures.insert(
          same, {.side = stage.side, .grid = stage.side / run.model.vision.patch});
    same->tiles = std::max(same->tiles, most_tiles(stage));
  }
  return preset;
}

}  // namespace

const std::vector<Preset>& presets() {
  static const std::vector<Preset> all = [] {
    std::vector<Preset> read_all;
    for (const char* name : {"1b", "1b-moe", "3b", "3b-moe", "7b", "30b"})
      read_all.push_back(read(name));
    return read_all;
  }();
  return all;
}

}  // namespace orchard::bench
