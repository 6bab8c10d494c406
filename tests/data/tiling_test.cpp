// Image splitting against the worked examples of the recipe.
#include "data/tiling.h"

#include <gtest/gtest.h>

#include "kernels/core/error.h"

namespace orchard {
namespace {

TilingOptions dynamic(GridReading reading, int max_tiles, int min_tiles = 4) {
  return {.mode = TilingMode::dynamic,
          .min_tiles = min_tiles,
          .max_tiles = max_tiles,
          .reading = reading};
}

TilePlan plan(int height, int width, const TilingOptions& options, int pictures = 1) {
  return plan_tiles({.width = width, .height = height}, options, pictures);
}

struct Example {
  int height, width;
  TileGrid longer_side_9, fit_9, longer_side_16, fit_16;
};

class WorkedExample : public ::testing::TestWithParam<Example> {};

TEST_P(WorkedExample, ChoosesTheGridOfTheTable) {
  const Example& e = GetParam();
  EXPECT_EQ(plan(e.height, e.width, dynamic(GridReading::longer_side, 9)).grid, e.longer_side_9);
  EXPECT_EQ(plan(e.height, e.width, dynamic(GridReading::fit, 9)).grid, e.fit_9);
  EXPECT_EQ(plan(e.height, e.width, dynamic(GridReading::longer_side, 16)).grid, e.longer_side_16);
  EXPECT_EQ(plan(e.height, e.width, dynamic(GridReading::fit, 16)).grid, e.fit_16);
}

INSTANTIATE_TEST_SUITE_P(Table, WorkedExample,
                         ::testing::Values(Example{672, 672, {2, 2}, {2, 2}, {2, 2}, {2, 2}},
                                           Example{200, 200, {2, 2}, {2, 2}, {2, 2}, {2, 2}},
                                           Example{1344, 1344, {2, 2}, {2, 2}, {2, 2}, {2, 2}},
                                           Example{2016, 2016, {3, 3}, {3, 3}, {3, 3}, {3, 3}},
                                           Example{480, 640, {2, 2}, {2, 3}, {3, 4}, {3, 4}},
                                           Example{426, 640, {2, 3}, {2, 3}, {2, 3}, {2, 3}},
                                           Example{427, 640, {2, 2}, {2, 3}, {3, 4}, {2, 3}},
                                           Example{600, 3000, {1, 5}, {1, 5}, {1, 5}, {1, 5}},
                                           Example{2200, 1700, {3, 3}, {3, 3}, {4, 4}, {4, 3}},
                                           Example{4000, 3000, {3, 3}, {3, 3}, {4, 3}, {4, 3}}),
                         [](const auto& tested) {
                           return std::to_string(tested.param.height) + "x" +
                                  std::to_string(tested.param.width);
                         });

TEST(Tiling, ScalesAsTheTableSays) {
  using enum GridReading;
  const auto expect = [](const TilePlan& p, std::int64_t height, std::int64_t width) {
    EXPECT_EQ(p.height, height);
    EXPECT_EQ(p.width, width);
  };
  expect(plan(2016, 2016, dynamic(longer_side, 9)), 2016, 2016);   // s 1
  expect(plan(480, 640, dynamic(longer_side, 9)), 1008, 1344);     // s 2.1
  expect(plan(480, 640, dynamic(fit, 9)), 1344, 1792);             // s 2.8
  expect(plan(480, 640, dynamic(longer_side, 16)), 2016, 2688);    // s 4.2, no padding
  expect(plan(426, 640, dynamic(longer_side, 9)), 1342, 2016);     // s 3.15: 1341.9
  expect(plan(427, 640, dynamic(longer_side, 9)), 897, 1344);      // s 2.1: 896.7
  expect(plan(600, 3000, dynamic(longer_side, 9)), 672, 3360);     // s 1.12
  expect(plan(2200, 1700, dynamic(longer_side, 9)), 2016, 1558);   // s 0.916: 1557.8
  expect(plan(2200, 1700, dynamic(longer_side, 16)), 2688, 2077);  // s 1.222: 2077.1
  expect(plan(2200, 1700, dynamic(fit, 16)), 2609, 2016);          // s 1.186: 2608.9
  expect(plan(4000, 3000, dynamic(longer_side, 9)), 2016, 1512);   // s 0.504
  expect(plan(4000, 3000, dynamic(longer_side, 16)), 2688, 2016);  // s 0.672
}

TEST(Tiling, NeverEnlargesWhenNoGridCovers) {
  // The longer side fills 4 tiles at scale 1.28, where the other overflows 2: infeasible. At scale
  // 1 the picture fits without shrinking, and no better was asked for.
  const TilePlan p = plan(2100, 1300, dynamic(GridReading::longer_side, 9));
  EXPECT_EQ(p.grid, (TileGrid{4, 2}));
  EXPECT_EQ(p.height, 2100);
  EXPECT_EQ(p.width, 1300);
}

TEST(Tiling, CountsTheGridsOfTheRecipe) {
  const auto count = [](int min_tiles, int max_tiles) {
    int grids = 0;
    for_each_grid(min_tiles, max_tiles, [&](TileGrid) { ++grids; });
    return grids;
  };
  EXPECT_EQ(count(4, 9), 18);
  EXPECT_EQ(count(4, 16), 45);
  EXPECT_EQ(count(1, 9), 23);
}

TEST(Tiling, TokensPerPictureStayInTheirBounds) {
  constexpr int tokens_per_tile = 144;
  EXPECT_EQ(plan(480, 640, {.side = 378}).tiles() * tokens_per_tile, 144);
  EXPECT_EQ(plan(480, 640, {.mode = TilingMode::fixed}).tiles() * tokens_per_tile, 720);
  for (const auto& [max_tiles, most] : {std::pair{9, 1440}, std::pair{16, 2448}}) {
    int least_seen = 1 << 20, most_seen = 0;
    for (int height = 30; height < 4000; height += 97) {
      for (int width = 30; width < 4000; width += 89) {
        const int tokens =
            plan(height, width, dynamic(GridReading::longer_side, max_tiles)).tiles() *
            tokens_per_tile;
        least_seen = std::min(least_seen, tokens);
        most_seen = std::max(most_seen, tokens);
      }
    }
    EXPECT_EQ(least_seen, 720);
    EXPECT_EQ(most_seen, most);
  }
}

TEST(Tiling, ThreePicturesAreNotSplit) {
  for (const TilingMode mode : {TilingMode::fixed, TilingMode::dynamic}) {
    EXPECT_GT(plan(480, 640, {.mode = mode}, 2).tiles(), 1);
    const TilePlan whole = plan(480, 640, {.mode = mode}, 3);
    EXPECT_EQ(whole, (TilePlan{{1, 1}, 672, 672, false}));
  }
}

TEST(Tiling, FixedSquashesToTwiceTheSide) {
  EXPECT_EQ(plan(100, 900, {.mode = TilingMode::fixed}), (TilePlan{{2, 2}, 1344, 1344, true}));
}

TEST(Tiling, ASingleTileHasNoOverviewAndNoPadding) {
  EXPECT_EQ(plan(500, 500, dynamic(GridReading::longer_side, 9, 1)),
            (TilePlan{{1, 1}, 672, 672, false}));
}

TEST(Tiling, APictureOfOnePixelRowKeepsIt) {
  const TilePlan p = plan(1, 60000, dynamic(GridReading::longer_side, 9));
  EXPECT_EQ(p.grid, (TileGrid{1, 9}));
  EXPECT_EQ(p.height, 1);
  EXPECT_EQ(p.width, 9 * 672);
}

TEST(Tiling, EveryPlanLiesInsideItsGrid) {
  for (const GridReading reading : {GridReading::longer_side, GridReading::fit}) {
    for (int height = 1; height < 5000; height += 131) {
      for (int width = 1; width < 5000; width += 127) {
        const TilePlan p = plan(height, width, dynamic(reading, 9));
        ASSERT_LE(p.height, p.grid.rows * 672);
        ASSERT_LE(p.width, p.grid.cols * 672);
        ASSERT_TRUE(p.has_overview);
      }
    }
  }
}

TEST(Tiling, ImpossibleOptionsAreNamed) {
  EXPECT_THROW(plan(0, 5, {}), Error);
  EXPECT_THROW(plan(5, 5, dynamic(GridReading::fit, 3)), Error);
  EXPECT_THROW(plan(5, 5, {.side = 0}), Error);
}

}  // namespace
}  // namespace orchard
