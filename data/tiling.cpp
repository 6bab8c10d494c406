#include "data/tiling.h"

#include <optional>

#include "kernels/core/error.h"

namespace orchard {
namespace {

// A scale factor as the exact fraction of two pixel counts.
struct Scale {
  std::int64_t pixels = 0;  // wanted
  std::int64_t of = 1;      // present

  bool operator<(const Scale& other) const { return pixels * other.of < other.pixels * of; }

  // Rounded to nearest, halves up; a resized picture keeps at least one pixel.
  std::int64_t apply(std::int64_t length) const {
    return std::max<std::int64_t>(1, (2 * length * pixels + of) / (2 * of));
  }
};

struct Extent {
  std::int64_t height = 0;
  std::int64_t width = 0;
};

Extent extent_of(TileGrid grid, std::int64_t side) {
  return {grid.rows * side, grid.cols * side};
}

Scale fitting_scale(PictureSize picture, Extent grid) {
  return std::min(Scale{grid.height, picture.height}, Scale{grid.width, picture.width});
}

Scale reading_scale(PictureSize picture, Extent grid, GridReading reading) {
  if (reading == GridReading::fit) return fitting_scale(picture, grid);
  return picture.width >= picture.height ? Scale{grid.width, picture.width}
                                         : Scale{grid.height, picture.height};
}

TilePlan squashed(int rows, int cols, std::int64_t side, bool has_overview) {
  return {{rows, cols}, rows * side, cols * side, has_overview};
}

TilePlan plan_dynamic(PictureSize picture, const TilingOptions& options) {
  std::optional<TilePlan> covering, shrunk;
  std::int64_t least_padding = 0;
  Scale largest;
  for_each_grid(options.min_tiles, options.max_tiles, [&](TileGrid grid) {
    const Extent extent = extent_of(grid, options.side);
    const Scale scale = reading_scale(picture, extent, options.reading);
    const std::int64_t height = scale.apply(picture.height), width = scale.apply(picture.width);
    if (extent.height >= height && height >= picture.height && extent.width >= width &&
        width >= picture.width) {
      const std::int64_t padding = extent.height * extent.width - height * width;
      if (!covering || padding < least_padding) {
        covering = TilePlan{grid, height, width, true};
        least_padding = padding;
      }
    }
    if (covering) return;
    const Scale fit = std::min(fitting_scale(picture, extent), Scale{1, 1});
    if (!shrunk || largest < fit) {
      shrunk = TilePlan{grid, fit.apply(picture.height), fit.apply(picture.width), true};
      largest = fit;
    }
  });
  const TilePlan plan = covering ? *covering : *shrunk;
  // A single tile shows what its overview would show: it is made like one, and stands alone.
  return plan.grid == TileGrid{} ? squashed(1, 1, options.side, false) : plan;
}

}  // namespace

TilePlan plan_tiles(PictureSize picture, const TilingOptions& options, int sample_pictures) {
  require(picture.width > 0 && picture.height > 0, "a picture of {} x {} pixels cannot be tiled",
          picture.width, picture.height);
  require(options.side > 0, "tile side {} must be positive", options.side);
  if (options.mode == TilingMode::whole || sample_pictures >= options.split_below_pictures) {
    return squashed(1, 1, options.side, false);
  }
  if (options.mode == TilingMode::fixed) return squashed(2, 2, options.side, true);
  require(options.min_tiles >= 1 && options.max_tiles >= options.min_tiles,
          "no grid has between {} and {} tiles: set 1 <= min_tiles <= max_tiles", options.min_tiles,
          options.max_tiles);
  return plan_dynamic(picture, options);
}

}  // namespace orchard
