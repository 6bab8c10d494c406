// Position marks in text and tokens.
#include "data/marks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/core/error.h"

namespace orchard {
namespace {

std::vector<std::int32_t> characters(std::string_view text) {
  return {text.begin(), text.end()};
}

std::string all_marks(MarkStyle style, int picture, const TilePlan& plan) {
  std::string text;
  for (int tile = 0; tile < plan.tiles(); ++tile)
    text += mark_text(style, picture, plan, tile) + "#";
  return text;
}

constexpr TilePlan two_by_three{{2, 3}, 1, 1, true};
constexpr TilePlan single{{1, 1}, 1, 1, false};

TEST(Marks, ReadAsTheRecipeWritesThem) {
  EXPECT_EQ(all_marks(MarkStyle::none, 0, two_by_three), "#######");
  EXPECT_EQ(all_marks(MarkStyle::separators, 0, two_by_three), "#,#,#\n#,#,#:#");
  EXPECT_EQ(all_marks(MarkStyle::index, 1, two_by_three),
            "(1,1,1)#(1,1,2)#(1,1,3)#(1,2,1)#(1,2,2)#(1,2,3)#(1,0,0)#");
  EXPECT_EQ(all_marks(MarkStyle::separators, 0, single), "#");
  EXPECT_EQ(all_marks(MarkStyle::index, 11, single), "(11,1,1)#");
}

TEST(Marks, TableHoldsEveryMarkThatSplittingCanAskFor) {
  for (const TilingMode mode : {TilingMode::whole, TilingMode::fixed, TilingMode::dynamic}) {
    for (const MarkStyle style : {MarkStyle::none, MarkStyle::separators, MarkStyle::index}) {
      const TilingOptions tiling{.mode = mode, .min_tiles = 1};
      const MarkTable table(style, characters, tiling, 5);
      for (int pictures = 1; pictures <= 5; ++pictures) {
        for (int picture = 0; picture < pictures; ++picture) {
          for (const PictureSize size : {PictureSize{640, 427}, PictureSize{100, 3000}, {9, 9}}) {
            const TilePlan plan = plan_tiles(size, tiling, pictures);
            std::int64_t tokens = 0;
            for (int tile = 0; tile < plan.tiles(); ++tile) {
              const auto mark = table.before(picture, plan, tile);
              EXPECT_THAT(mark, ::testing::ElementsAreArray(
                                    characters(mark_text(style, picture, plan, tile))));
              tokens += static_cast<std::int64_t>(mark.size());
            }
            EXPECT_EQ(table.tokens_of(picture, plan), tokens);
          }
        }
      }
    }
  }
}

TEST(Marks, APictureBeyondTheTableIsAnError) {
  const MarkTable table(MarkStyle::index, characters, {}, 2);
  EXPECT_THROW(table.before(2, single, 0), Error);
}

}  // namespace
}  // namespace orchard
