#include "parallel/mesh.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <set>

#include "tests/message_of.h"

namespace orchard {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::message_of;
using Groups = std::vector<std::vector<int>>;

// Every order of the four axes.
std::vector<RankOrder> all_orders() {
  RankOrder order = default_rank_order;
  std::sort(order.begin(), order.end());
  std::vector<RankOrder> orders;
  do {
    orders.push_back(order);
  } while (std::next_permutation(order.begin(), order.end()));
  return orders;
}

void for_all_layouts(const std::function<void(int world, const Layout&)>& visit) {
  for (const int world : {1, 2, 3, 4, 6, 8, 12}) {
    for (const RankOrder& order : all_orders()) {
      for (int tp = 1; tp <= world; ++tp) {
        for (int pp = 1; pp <= world; ++pp) {
          for (int ep = 1; ep <= world; ++ep) {
            for (int etp = 1; etp <= world; ++etp) {
              const Layout layout{tp, pp, ep, etp, order};
              if (!broken_rule(world, layout)) visit(world, layout);
            }
          }
        }
      }
    }
  }
}

TEST(Mesh, EightRanksByHand) {
  const Mesh mesh(8, {.tensor = 2, .pipeline = 2, .expert = 4});
  EXPECT_EQ(mesh.data(), 2);
  EXPECT_EQ(mesh.expert_data(), 1);
  EXPECT_EQ(mesh.groups(MeshGroup::tensor), (Groups{{0, 1}, {2, 3}, {4, 5}, {6, 7}}));
  EXPECT_EQ(mesh.groups(MeshGroup::data), (Groups{{0, 2}, {1, 3}, {4, 6}, {5, 7}}));
  EXPECT_EQ(mesh.groups(MeshGroup::pipeline), (Groups{{0, 4}, {1, 5}, {2, 6}, {3, 7}}));
  EXPECT_EQ(mesh.groups(MeshGroup::model), (Groups{{0, 1, 4, 5}, {2, 3, 6, 7}}));
  EXPECT_EQ(mesh.groups(MeshGroup::stage), (Groups{{0, 1, 2, 3}, {4, 5, 6, 7}}));
  EXPECT_EQ(mesh.groups(MeshGroup::expert), (Groups{{0, 1, 2, 3}, {4, 5, 6, 7}}));
  EXPECT_EQ(mesh.groups(MeshGroup::expert_tensor),
            (Groups{{0}, {1}, {2}, {3}, {4}, {5}, {6}, {7}}));
  EXPECT_EQ(mesh.groups(MeshGroup::world), (Groups{{0, 1, 2, 3, 4, 5, 6, 7}}));
  EXPECT_EQ(mesh.name(7), "rank 7 (pp1 dp1 tp1 | ep3 etp0 edp0)");
}

TEST(Mesh, TheOrderDecidesWhoIsNextToWhom) {
  Layout layout{.tensor = 2, .pipeline = 2, .expert = 2, .expert_tensor = 1};
  layout.order = parse_rank_order("pp-tp-ep-dp");
  const Mesh mesh(8, layout);
  EXPECT_EQ(mesh.groups(MeshGroup::pipeline), (Groups{{0, 1}, {2, 3}, {4, 5}, {6, 7}}));
  EXPECT_EQ(mesh.groups(MeshGroup::tensor), (Groups{{0, 2}, {1, 3}, {4, 6}, {5, 7}}));
  EXPECT_EQ(mesh.groups(MeshGroup::data), (Groups{{0, 4}, {1, 5}, {2, 6}, {3, 7}}));
  EXPECT_EQ(mesh.groups(MeshGroup::expert), (Groups{{0, 2}, {1, 3}, {4, 6}, {5, 7}}));
  layout.order = parse_rank_order("dp-ep-tp-pp");
  EXPECT_EQ(Mesh(8, layout).groups(MeshGroup::data), (Groups{{0, 1}, {2, 3}, {4, 5}, {6, 7}}));
}

// Either factorisation numbers the ranks without gaps, and both agree on stages.
TEST(Mesh, EveryRankHasItsOwnPlaceInBothFactorisations) {
  for_all_layouts([](int world, const Layout& layout) {
    const Mesh mesh(world, layout);
    std::set<std::array<int, 3>> dense, experts;
    for (int rank = 0; rank < world; ++rank) {
      const MeshCoordinates c = mesh.coordinates(rank);
      ASSERT_LT(c.pipeline, layout.pipeline);
      ASSERT_LT(c.tensor, layout.tensor);
      ASSERT_LT(c.data, mesh.data());
      ASSERT_LT(c.expert, layout.expert);
      ASSERT_LT(c.expert_tensor, layout.expert_tensor);
      ASSERT_LT(c.expert_data, mesh.expert_data());
      dense.insert({c.pipeline, c.data, c.tensor});
      experts.insert(
          {c.pipeline, c.expert_data, c.expert * layout.expert_tensor + c.expert_tensor});
    }
    ASSERT_EQ(dense.size(), static_cast<std::size_t>(world)) << layout.to_string();
    ASSERT_EQ(experts.size(), static_cast<std::size_t>(world)) << layout.to_string();
  });
}

TEST(Mesh, GroupsOfAKindShareOutTheRanksInOrderOfTheirCoordinate) {
  using Coordinate = int MeshCoordinates::*;
  const std::map<MeshGroup, Coordinate> of_one_axis{
      {MeshGroup::tensor, &MeshCoordinates::tensor},
      {MeshGroup::data, &MeshCoordinates::data},
      {MeshGroup::pipeline, &MeshCoordinates::pipeline},
      {MeshGroup::expert, &MeshCoordinates::expert},
      {MeshGroup::expert_tensor, &MeshCoordinates::expert_tensor},
      {MeshGroup::expert_data, &MeshCoordinates::expert_data}};
  for_all_layouts([&](int world, const Layout& l) {
    if (world > 8) return;
    const Mesh mesh(world, l);
    const std::map<MeshGroup, int> sizes{{MeshGroup::tensor, l.tensor},
                                         {MeshGroup::data, mesh.data()},
                                         {MeshGroup::pipeline, l.pipeline},
                                         {MeshGroup::model, l.tensor * l.pipeline},
                                         {MeshGroup::stage, world / l.pipeline},
                                         {MeshGroup::expert, l.expert},
                                         {MeshGroup::expert_tensor, l.expert_tensor},
                                         {MeshGroup::expert_data, mesh.expert_data()},
                                         {MeshGroup::expert_layer, l.expert * l.expert_tensor},
                                         {MeshGroup::world, world}};
    for (const MeshGroup kind : mesh_groups) {
      std::set<int> seen;
      for (const std::vector<int>& ranks : mesh.groups(kind)) {
        ASSERT_EQ(static_cast<int>(ranks.size()), sizes.at(kind)) << name_of(kind);
        seen.insert(ranks.begin(), ranks.end());
        for (const int rank : ranks) ASSERT_EQ(mesh.group(kind, rank), ranks);
        const auto coordinate = of_one_axis.find(kind);
        for (std::size_t i = 0; coordinate != of_one_axis.end() && i < ranks.size(); ++i)
          ASSERT_EQ(mesh.coordinates(ranks[i]).*coordinate->second, static_cast<int>(i));
      }
      ASSERT_EQ(seen.size(), static_cast<std::size_t>(world)) << name_of(kind);
    }
  });
}

TEST(Mesh, TheEmbeddingGroupJoinsLookupAndHead) {
  const Mesh mesh(8, {.tensor = 2, .pipeline = 4});
  EXPECT_THAT(mesh.embedding_group(1, 0, 3), ElementsAre(1, 7));
  EXPECT_THAT(mesh.embedding_group(7, 0, 3), ElementsAre(1, 7));
  EXPECT_THAT(mesh.embedding_group(3, 0, 3), ElementsAre());
  EXPECT_THAT(mesh.embedding_group(1, 0, 0), ElementsAre(1));  // a vee has both on one rank
}

TEST(RankOrder, IsReadAndPrinted) {
  for (const RankOrder& order : all_orders()) EXPECT_EQ(parse_rank_order(to_string(order)), order);
  for (const std::string text :
       {"", "tp", "tp-ep-dp", "tp-ep-dp-dp", "tp-ep-dp-pp-", "tp-ep-dp-xx", "tp-ep-dp-pp-tp"}) {
    EXPECT_THAT(message_of([&] { parse_rank_order(text); }), HasSubstr("rank order " + text));
  }
}

TEST(Layout, ImpossibleWorldsNameRuleAndNearest) {
  const auto message = [](int world, const Layout& layout) {
    return message_of([&] { Mesh(world, layout); });
  };
  EXPECT_THAT(message(8, {.tensor = 3}),
              AllOf(HasSubstr("tp 3 = 3: must divide the 8 ranks"),
                    HasSubstr("nearest possible layout of 8 ranks is tp 4, pp 1")));
  EXPECT_THAT(message(8, {.tensor = 2, .pipeline = 2, .expert = 4, .expert_tensor = 2}),
              AllOf(HasSubstr("ep 4 x etp 2 = 16: must divide the 8 ranks"),
                    HasSubstr("tp 2, pp 1, ep 4, etp 2")));
  EXPECT_THAT(message(4, {.pipeline = 8}), AllOf(HasSubstr("only 4 ranks"), HasSubstr("pp 4")));
  EXPECT_THAT(message(4, {.tensor = 0}), AllOf(HasSubstr("at least 1"), HasSubstr("tp 1")));
  EXPECT_THAT(
      message(8, {.tensor = 2, .pipeline = 2, .order = parse_rank_order("tp-pp-ep-dp")}),
      AllOf(HasSubstr("order tp-pp-ep-dp"), HasSubstr("2 ranks away"), HasSubstr("nearest")));
}

TEST(Layout, TheOrderMayHavePipelinesInTheMiddleWhereBothPartsAgree) {
  const Layout layout{.tensor = 2,
                      .pipeline = 2,
                      .expert = 2,
                      .expert_tensor = 2,
                      .order = parse_rank_order("tp-pp-ep-dp")};
  EXPECT_EQ(broken_rule(8, layout), std::nullopt);
}

TEST(Layout, ModelsThatDoNotDivideAreRefused) {
  const LayoutFacts facts{.heads = 12,
                          .kv_heads = 4,
                          .ffn = 48,
                          .vocabulary = 1000,
                          .vision_heads = 16,
                          .vision_mlp = 64,
                          .experts = 6,
                          .expert_ffn = 10,
                          .blocks = 5,
                          .chunks = 2,
                          .batches = {{.sequences = 24}}};
  const auto broken = [&](int world, const Layout& layout) {
    return broken_rule(world, layout, facts).value_or("");
  };
  EXPECT_EQ(broken(4, {.tensor = 4}), "");
  EXPECT_THAT(broken(8, {.tensor = 8}), HasSubstr("tp 8: must divide the decoder's heads, of"));
  EXPECT_THAT(broken(3, {.tensor = 3}), HasSubstr("tokens of the vocabulary"));
  EXPECT_THAT(broken(4, {.expert = 4}), HasSubstr("ep 4: must divide the experts"));
  EXPECT_THAT(broken(4, {.expert_tensor = 4}), HasSubstr("etp 4: must divide the ffn columns of"));
  EXPECT_EQ(broken(2, {.pipeline = 2}), "");
  EXPECT_THAT(broken(3, {.pipeline = 3}), HasSubstr("pp 3 x 2 chunks = 6 stages"));
  EXPECT_THAT(broken(5, {}), HasSubstr("dp 5, which is what 5 ranks leave"));

  EXPECT_THAT(message_of([&] { require_possible(8, {.tensor = 8}, facts); }),
              HasSubstr("the nearest possible layout of 8 ranks is tp 4, pp 1, ep 1, etp 1"));
  EXPECT_THAT(message_of([&] { require_possible(7, {}, facts); }),
              HasSubstr("no layout of 7 ranks is possible"));
}

TEST(Layout, AMicroBatchIsTheLargestThatFitsAReplicasShare) {
  EXPECT_EQ(micro_batch_of(8, 4, 1), 4);
  EXPECT_EQ(micro_batch_of(8, 4, 4), 2);
  EXPECT_EQ(micro_batch_of(8, 4, 8), 1);
  EXPECT_EQ(micro_batch_of(12, 5, 1), 4);  // not 5, of which 12 is no multiple
  EXPECT_EQ(micro_batch_of(7, 5, 1), 1);
  EXPECT_EQ(micro_batch_of(3, 100, 1), 3);
  EXPECT_EQ(micro_batch_of(512, 1, 64), 1);
  EXPECT_THAT(message_of([] { micro_batch_of(8, 4, 3); }), HasSubstr("among 3 replicas"));
}

// Chunks are of the rows that there are: of the smallest micro-batch in use.
TEST(Layout, ChunksAreOfTheMicroBatchInUse) {
  const LayoutFacts facts{
      .heads = 8,
      .kv_heads = 2,
      .batches = {{.sequences = 8, .micro_batch = 4, .rows = 10}, {.sequences = 4, .rows = 30}}};
  const auto broken = [&](int world, int chunks) {
    return broken_rule(world, {.tensor = 2, .tensor_chunks = chunks}, facts).value_or("");
  };
  EXPECT_EQ(broken(2, 15), "");  // 40 and 30 rows
  EXPECT_THAT(broken(2, 16), HasSubstr("at most 15, a tensor rank's share of the 30 rows"));
  EXPECT_EQ(broken(8, 10), "");  // 20 and 30 rows
  EXPECT_THAT(broken(8, 11), HasSubstr("at most 10, a tensor rank's share of the 20 rows"));
}

TEST(Layout, KeyValueHeadsAreSplitOrCopied) {
  const auto broken = [](int tp, std::int64_t kv_heads) {
    return broken_rule(tp, {.tensor = tp}, {.heads = 24, .kv_heads = kv_heads}).has_value();
  };
  EXPECT_FALSE(broken(2, 4));
  EXPECT_FALSE(broken(8, 4));  // two ranks a kv head
  EXPECT_TRUE(broken(6, 4));
  EXPECT_TRUE(broken(3, 4));
}

TEST(Layout, ADenseModelHasNoExpertRanks) {
  EXPECT_THAT(broken_rule(4, {.expert = 2}, {.heads = 8, .kv_heads = 8}).value_or(""),
              HasSubstr("no experts"));
}

TEST(Layout, ChunksNeedTensorRanksAndRows) {
  const LayoutFacts facts{.heads = 8, .kv_heads = 2, .batches = {{.rows = 10}}};
  const auto message = [&](int tp, int chunks) {
    return message_of([&] { require_possible(4, {.tensor = tp, .tensor_chunks = chunks}, facts); });
  };
  EXPECT_EQ(message(4, 3), "");
  EXPECT_THAT(message(4, 4), AllOf(HasSubstr("tp-chunks 4: must be at most 3"),
                                   HasSubstr("of 4 ranks is tp 4"), HasSubstr("tp-chunks 3")));
  EXPECT_THAT(message(1, 2),
              AllOf(HasSubstr("tp-chunks 2: with tp 1"),
                    HasSubstr("is tp 1, pp 1, ep 1, etp 1, order tp-ep-dp-pp (dp 4)")));
  EXPECT_THAT(message(4, 0), HasSubstr("at least 1"));
}

// The nearest is possible wherever there is one, and the layout itself where that is possible.
TEST(Layout, TheNearestIsPossible) {
  const LayoutFacts facts{.heads = 8, .kv_heads = 2, .ffn = 64, .experts = 8, .blocks = 6};
  for (const int world : {1, 2, 4, 6, 8}) {
    for (int tp = 1; tp <= 5; ++tp) {
      for (int pp = 1; pp <= 5; ++pp) {
        for (int ep = 1; ep <= 5; ++ep) {
          const Layout layout{.tensor = tp, .pipeline = pp, .expert = ep};
          const auto nearest = nearest_layout(world, layout, facts);
          ASSERT_TRUE(nearest) << layout.to_string();
          EXPECT_EQ(broken_rule(world, *nearest, facts), std::nullopt);
          if (!broken_rule(world, layout, facts)) {
            EXPECT_EQ(*nearest, layout);
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace orchard
