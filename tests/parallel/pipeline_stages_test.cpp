// Which rank of a pipeline has which links, and so which parameters.
#include "parallel/pipeline_stages.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "parallel/sharding.h"
#include "tests/message_of.h"

namespace orchard::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(PipelineStages, OneRankHasEverything) {
  const PipelineStages none;
  EXPECT_EQ(none.ranks(), 1);
  EXPECT_EQ(none.count(), 1);
  EXPECT_TRUE(none.links_of_rank(0).empty());
  EXPECT_EQ(none.rank_of(17), 0);
}

TEST(PipelineStages, ChunksWrapOrTurnBack) {
  const PipelineStages wrap(ScheduleKind::interleaved, 2, 2, {0, 3, 4, 6, 9});
  EXPECT_THAT(wrap.links_of_rank(0), ElementsAre(LinkRange{0, 3}, LinkRange{4, 6}));
  EXPECT_THAT(wrap.links_of_rank(1), ElementsAre(LinkRange{3, 4}, LinkRange{6, 9}));
  const PipelineStages vee(ScheduleKind::zero_bubble_v, 2, 2, {0, 3, 4, 6, 9});
  EXPECT_THAT(vee.links_of_rank(0), ElementsAre(LinkRange{0, 3}, LinkRange{6, 9}));
  EXPECT_THAT(vee.links_of_rank(1), ElementsAre(LinkRange{3, 4}, LinkRange{4, 6}));
  for (const PipelineStages& stages : {wrap, vee}) {
    for (int link = 0; link < 9; ++link) {
      const ShardingPlace place{.links = stages.links_of_rank(stages.rank_of(link))};
      EXPECT_TRUE(place.has(link)) << stages.to_string() << ", " << link;
    }
  }
  EXPECT_EQ(vee.to_string(), "zb-v, blocks 0-2 | 3-3 | 4-5 | 6-8");
}

TEST(PipelineStages, RefusesCutsThatDoNotFit) {
  const auto message = [](int chunks, std::vector<int> cuts) {
    return message_of([&] {
      PipelineStages(ScheduleKind::one_forward_one_backward, 2, chunks, std::move(cuts));
    });
  };
  EXPECT_EQ(message(1, {0, 1, 2}), "");
  EXPECT_THAT(message(1, {0, 2, 2}), HasSubstr("stage 1 has no block"));
  EXPECT_THAT(message(1, {0, 2}), HasSubstr("as many first blocks and the end"));
  EXPECT_THAT(message(1, {1, 2, 3}), HasSubstr("as many first blocks and the end"));
  EXPECT_THAT(message(2, {0, 1, 2, 3, 4}), HasSubstr("1f1b has 1 chunk a rank, not 2"));
}

Shard shard_at(const Sharding& sharding, const std::vector<LinkRange>& links) {
  return shard_of({6, 5}, sharding, {.tensor = {1, 2}, .links = links});
}

TEST(Shard, ParametersAreAtTheStageOfTheirLink) {
  const Sharding w{.tensor_dim = 0, .link = 4};
  EXPECT_EQ(shard_at(w, {}).slice, (Slice{0, 3, 3}));
  EXPECT_EQ(shard_at(w, {{0, 2}, {4, 5}}).slice, (Slice{0, 3, 3}));
  EXPECT_EQ(shard_at(w, {{0, 4}, {5, 9}}).slice, (Slice{0, 0, 0}));
  const Sharding expert{.expert = 1, .experts = 2, .link = 4};
  EXPECT_EQ(shard_at(expert, {{4, 5}}).slice.count, 6);
  EXPECT_EQ(shard_at(expert, {{5, 6}}).slice.count, 0);
}

TEST(Shard, ATiedTableIsAtBothOfItsStages) {
  const Sharding table{.tensor_dim = 0, .link = 2, .tied_link = 7};
  const Shard alone = shard_at(table, {}), lookup = shard_at(table, {{0, 4}}),
              head = shard_at(table, {{4, 8}}), both = shard_at(table, {{0, 3}, {6, 8}}),
              neither = shard_at(table, {{3, 6}});
  EXPECT_EQ(alone.reduction.copy, TiedCopy::none);
  EXPECT_FALSE(alone.tied_here);
  EXPECT_EQ(lookup.reduction.copy, TiedCopy::first);
  EXPECT_EQ(head.reduction.copy, TiedCopy::second);
  EXPECT_EQ(lookup.slice, head.slice);
  EXPECT_TRUE(lookup.counts() && head.counts_in_stage());
  EXPECT_FALSE(head.counts());
  EXPECT_TRUE(both.tied_here && both.counts());
  EXPECT_EQ(both.reduction.copy, TiedCopy::none);
  EXPECT_EQ(neither.slice.count, 0);
}

}  // namespace
}  // namespace orchard::testing
