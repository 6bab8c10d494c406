#include "data/marks.h"

#include <fmt/core.h>

#include "kernels/core/error.h"

namespace orchard {
namespace {

// Row and column from 1; (0, 0) is the overview.
TileGrid place_of(const TilePlan& plan, int tile) {
  if (tile == plan.grid_tiles()) return {0, 0};
  return {tile / plan.grid.cols + 1, tile % plan.grid.cols + 1};
}

enum Separator : std::size_t {
  before_first,
  before_column,
  before_row,
  before_overview,
  separators
};

Separator separator_of(TileGrid place) {
  if (place.rows == 0) return before_overview;
  if (place.cols > 1) return before_column;
  return place.rows > 1 ? before_row : before_first;
}

std::string_view text_of(Separator separator) {
  switch (separator) {
    case before_column:
      return ",";
    case before_row:
      return "\n";
    case before_overview:
      return ":";
    default:
      return "";
  }
}

int longest_side(const TilingOptions& tiling) {
  switch (tiling.mode) {
    case TilingMode::whole:
      return 1;
    case TilingMode::fixed:
      return 2;
    case TilingMode::dynamic:
      return tiling.max_tiles;
  }
  return 1;
}

}  // namespace

std::string mark_text(MarkStyle style, int picture, const TilePlan& plan, int tile) {
  const TileGrid place = place_of(plan, tile);
  switch (style) {
    case MarkStyle::none:
      return "";
    case MarkStyle::separators:
      return std::string(text_of(separator_of(place)));
    case MarkStyle::index:
      return fmt::format("({},{},{})", picture, place.rows, place.cols);
  }
  return "";
}

MarkTable::MarkTable(MarkStyle style, const TextTokenizer& tokenize, const TilingOptions& tiling,
                     int max_pictures)
    : style_(style), pictures_(max_pictures), longest_side_(longest_side(tiling)) {
  if (style == MarkStyle::none) return;
  const auto places = static_cast<std::size_t>((longest_side_ + 1) * (longest_side_ + 1));
  tokens_.resize(style == MarkStyle::separators ? separators
                                                : static_cast<std::size_t>(pictures_) * places);
  const auto add = [&](int picture, const TilePlan& plan) {
    for (int tile = 0; tile < plan.tiles(); ++tile) {
      const std::string text = mark_text(style, picture, plan, tile);
      auto& tokens = tokens_[slot(picture, plan, tile)];
      if (!text.empty() && tokens.empty()) tokens = tokenize(text);
    }
  };
  for (int picture = 0; picture < pictures_; ++picture) {
    add(picture, {.grid = {1, 1}});
    // Samples with more pictures than these are never split.
    if (tiling.mode == TilingMode::whole || picture + 1 >= tiling.split_below_pictures) continue;
    const bool fixed = tiling.mode == TilingMode::fixed;
    for_each_grid(fixed ? 4 : tiling.min_tiles, fixed ? 4 : tiling.max_tiles, [&](TileGrid grid) {
      if (std::max(grid.rows, grid.cols) <= longest_side_) {
        add(picture, {.grid = grid, .has_overview = true});
      }
    });
  }
}

std::size_t MarkTable::slot(int picture, const TilePlan& plan, int tile) const {
  const TileGrid place = place_of(plan, tile);
  if (style_ == MarkStyle::separators) return separator_of(place);
  require(picture < pictures_ && plan.grid.rows <= longest_side_ && plan.grid.cols <= longest_side_,
          "the mark table covers {} pictures of {} tiles a side, not picture {} of {} x {} tiles",
          pictures_, longest_side_, picture, plan.grid.rows, plan.grid.cols);
  const int side = longest_side_ + 1;
  return static_cast<std::size_t>((picture * side + place.rows) * side + place.cols);
}

std::span<const std::int32_t> MarkTable::before(int picture, const TilePlan& plan, int tile) const {
  if (style_ == MarkStyle::none) return {};
  return tokens_[slot(picture, plan, tile)];
}

std::int64_t MarkTable::tokens_of(int picture, const TilePlan& plan) const {
  if (style_ == MarkStyle::none) return 0;
  std::int64_t count = 0;
  for (int tile = 0; tile < plan.tiles(); ++tile) {
    count += static_cast<std::int64_t>(before(picture, plan, tile).size());
  }
  return count;
}

}  // namespace orchard
