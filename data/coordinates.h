// Boxes and points as text: "<x1,y1,x2,y2>" and "<x,y>", integers 0 ... 1000 relative to the whole
// original picture, whatever its tiles. As in Ferret, scaling truncates both ways. Pages
// give boxes; no source that is shipped has points, whose format is ready.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "data/sample.h"

namespace orchard {

inline constexpr std::int32_t coordinate_bins = 1000;

struct Point {
  std::int32_t x = 0;
  std::int32_t y = 0;
  bool operator==(const Point&) const = default;
};

struct Box {
  Point top_left;
  Point bottom_right;
  bool operator==(const Box&) const = default;
};

// Pixels of the original picture (fractions allowed) to bins; what lies outside lands on the
// border.
Point to_bins(double x_pixels, double y_pixels, PictureSize);
// Bins to pixels of the original picture.
Point to_pixels(Point bins, PictureSize);

std::string format(const Point&);
std::string format(const Box&);

// The whole text is one point or box with coordinates 0 ... 1000, without spaces; otherwise
// nothing.
std::optional<Point> parse_point(std::string_view);
std::optional<Box> parse_box(std::string_view);

}  // namespace orchard
