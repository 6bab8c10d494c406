// Boxes and points as text.
#include "data/coordinates.h"

#include <gtest/gtest.h>

#include "kernels/core/error.h"

namespace orchard {
namespace {

TEST(Coordinates, FormatAndParseAreInverse) {
  const Box box{{0, 17}, {999, 1000}};
  EXPECT_EQ(format(box), "<0,17,999,1000>");
  EXPECT_EQ(parse_box(format(box)), box);
  const Point point{500, 3};
  EXPECT_EQ(format(point), "<500,3>");
  EXPECT_EQ(parse_point(format(point)), point);
}

TEST(Coordinates, WhatIsNotExactlyABoxIsNotParsed) {
  for (const char* text : {"", "<", "<>", "<1,2>", "<1,2,3>", "<1,2,3,4", "1,2,3,4>", "<1,2,3,4>x",
                           "<1,2,3,1001>", "<-1,2,3,4>", "< 1,2,3,4>", "<1,,3,4>", "<1,2,3,4,5>",
                           "<1.5,2,3,4>", "<99999999999,2,3,4>"}) {
    EXPECT_FALSE(parse_box(text)) << text;
  }
  EXPECT_FALSE(parse_point("<1,2,3,4>"));
}

TEST(Coordinates, ScalingTruncatesBothWays) {
  const PictureSize picture{.width = 640, .height = 3};
  EXPECT_EQ(to_bins(639, 1, picture), (Point{998, 333}));  // 998.4, 333.3
  EXPECT_EQ(to_bins(640, 3, picture), (Point{1000, 1000}));
  EXPECT_EQ(to_bins(-4, 7, picture), (Point{0, 1000}));
  EXPECT_EQ(to_pixels({998, 333}, picture), (Point{638, 0}));  // 638.7, 0.999
  EXPECT_EQ(to_pixels({1000, 1000}, picture), (Point{640, 3}));
  EXPECT_THROW(to_bins(1, 1, {}), Error);
}

}  // namespace
}  // namespace orchard
