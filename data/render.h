// Pictures to the patches of their tiles.
#pragma once

#include <memory>
#include <vector>

#include "data/picture.h"
#include "data/tiling.h"
#include "kernels/device/device.h"

namespace orchard {

class PictureRenderer {
 public:
  // `device` is a CPU's; `side` is a multiple of `patch`, both in pixels.
  PictureRenderer(Device& device, std::int64_t side, std::int64_t patch);

  // Floats of one tile.
  std::int64_t tile_values() const { return side_ * side_ * 3; }

  // Writes the patches of all tiles of the plan, the overview last: [plan.tiles(), (side/patch)²,
  // 3·patch²].
  void render(const Picture& picture, const TilePlan& plan, float* patches);

 private:
  void render_grid(const Picture& picture, const TilePlan& plan, float* patches);

  std::unique_ptr<Stream> stream_;
  std::int64_t side_;
  std::int64_t patch_;
  std::vector<float> canvas_;
};

}  // namespace orchard
