// Held-out sequences: each sample once; swapped pictures change nothing else.
#include "data/held_out.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "kernels/core/error.h"
#include "tests/data/planning.h"

namespace orchard::testing {
namespace {

SampleLayout layout_of(const TrainingSetIndex& index) {
  const TilingOptions tiling{.mode = TilingMode::dynamic, .side = 28};
  return {index,
          {.length = 160, .tokens_per_tile = 4, .tiling = tiling},
          make_mark_table(MarkStyle::index, characters, tiling, index)};
}

std::vector<std::int64_t> samples_of(const HeldOutPlan& plan) {
  std::vector<std::int64_t> samples;
  for (const PackedSequence& sequence : plan.sequences) {
    for (const PackedSample& packed : sequence.samples) samples.push_back(packed.sample);
  }
  return samples;
}

TEST(HeldOut, EachSampleOnceInIndexOrder) {
  const TrainingSetIndex index = random_index(11, 700, 100);
  const SampleLayout layout = layout_of(index);
  const HeldOutPlan plan = plan_held_out(layout);
  EXPECT_EQ(samples_of(plan), layout.packable(Split::held_out));
  EXPECT_EQ(plan.samples, static_cast<std::int64_t>(samples_of(plan).size()));
  EXPECT_GT(plan.skipped, 0);
}

TEST(HeldOut, LimitTakesSamplesEvenlySpacedPerCategory) {
  std::vector<SampleShape> shapes(10, {.split = Split::held_out});
  shapes.resize(14, {.category = 1, .split = Split::held_out});
  shapes.resize(16, {.category = 2, .split = Split::held_out});
  const TrainingSetIndex index = make_index({"a", "b", "c"}, shapes);
  const SampleLayout layout = layout_of(index);
  EXPECT_EQ(samples_of(plan_held_out(layout, {.limit_per_category = 3})),
            (std::vector<std::int64_t>{0, 3, 6, 10, 11, 12, 14, 15}));
  EXPECT_THROW(plan_held_out(layout, {.limit_per_category = 0}), Error);
}

TEST(HeldOut, SwappingKeepsThePackingAndMovesEveryPairedPictureOnce) {
  const TrainingSetIndex index = random_index(12, 2000, 60);
  const SampleLayout layout = layout_of(index);
  const HeldOutPlan plan = plan_held_out(layout);
  std::map<std::int64_t, std::int64_t> partner;
  std::set<std::int64_t> lent;
  for (const PicturePair& pair : plan.pairs) {
    EXPECT_NE(pair.sample, pair.pictures_of);
    EXPECT_TRUE(partner.emplace(pair.sample, pair.pictures_of).second);
    EXPECT_TRUE(lent.insert(pair.pictures_of).second) << "pictures lent twice";
    EXPECT_EQ(layout.record(pair.sample).category, layout.record(pair.pictures_of).category);
    const auto own = layout.tile_plans(pair.sample), other = layout.tile_plans(pair.pictures_of);
    ASSERT_EQ(own.size(), other.size());
    for (std::size_t p = 0; p < own.size(); ++p) EXPECT_EQ(own[p].grid, other[p].grid);
  }
  std::int64_t unpaired = 0;
  std::vector<PackedSequence> swapped = plan.swapped();
  for (PackedSequence& sequence : swapped) {
    for (PackedSample& packed : sequence.samples) {
      const auto found = partner.find(packed.sample);
      EXPECT_EQ(packed.pictures_of, found == partner.end() ? packed.sample : found->second);
      unpaired += found == partner.end() && layout.record(packed.sample).picture_count > 0;
      packed.pictures_of = packed.sample;
    }
  }
  EXPECT_EQ(swapped, plan.sequences);
  EXPECT_EQ(unpaired, plan.unpaired);
  EXPECT_GT(plan.unpaired, 0);
  EXPECT_GT(plan.pairs.size(), 100u);
}

}  // namespace
}  // namespace orchard::testing
