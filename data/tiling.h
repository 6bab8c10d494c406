// Image splitting: how many square tiles a picture becomes, and at which size it is laid on them.
//
// Dynamic splitting takes, among the grids of min_tiles to max_tiles tiles that hold the whole
// picture without shrinking it, the one with the least padding; when every grid would shrink the
// picture, the one that shrinks it least. Ties go to fewer tiles, then to fewer rows. All decisions
// are taken on integers, so every machine takes the same.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "data/sample.h"

namespace orchard {

enum class TilingMode : std::uint8_t {
  whole,    // one tile: the picture squashed to the square
  fixed,    // 2 x 2 tiles of the picture squashed to twice the side, and an overview
  dynamic,  // a grid chosen by the picture's size, and an overview
};

// How a picture is scaled to a grid while the grids are compared. Both keep its proportions.
enum class GridReading : std::uint8_t {
  longer_side,  // the longer side fills its side of the grid; the other may overflow: infeasible
  fit,          // the largest scale at which both sides stay inside the grid
};

struct TilingOptions {
  TilingMode mode = TilingMode::whole;
  std::int64_t side = 672;  // pixels a side of a tile
  int min_tiles = 4;        // dynamic: bounds of rows·cols, the overview not counted
  int max_tiles = 9;
  GridReading reading = GridReading::longer_side;
  int split_below_pictures = 3;  // a sample with this many pictures or more keeps them whole
};

struct TileGrid {
  int rows = 1;
  int cols = 1;
  bool operator==(const TileGrid&) const = default;
};

// Tiles come row by row, the overview (the picture squashed to one tile) last. Right of and below
// [height, width] the grid shows the mean colour.
struct TilePlan {
  TileGrid grid;
  std::int64_t height = 0;  // of the picture resized for the grid, in pixels
  std::int64_t width = 0;
  bool has_overview = false;

  int grid_tiles() const { return grid.rows * grid.cols; }
  int tiles() const { return grid_tiles() + (has_overview ? 1 : 0); }
  bool operator==(const TilePlan&) const = default;
};

// `sample_pictures` is the number of pictures in the sample this one belongs to. Throws on a size
// that is not positive and on options that allow no grid.
TilePlan plan_tiles(PictureSize, const TilingOptions&, int sample_pictures);

// Calls `visit` with every grid of min_tiles to max_tiles tiles: fewer tiles first, then fewer
// rows.
template <class Visit>
void for_each_grid(int min_tiles, int max_tiles, const Visit& visit) {
  for (int tiles = std::max(min_tiles, 1); tiles <= max_tiles; ++tiles) {
    for (int rows = 1; rows <= tiles; ++rows) {
      if (tiles % rows == 0) visit(TileGrid{rows, tiles / rows});
    }
  }
}

}  // namespace orchard
