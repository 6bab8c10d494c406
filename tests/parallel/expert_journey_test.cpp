// The ways of rows to the experts and back, walked by all ranks of a group in one process.
#include "parallel/expert_journey.h"

#include <gtest/gtest.h>

#include <numeric>

#include "kernels/permute/permute.h"
#include "tests/message_of.h"
#include "tests/parallel/expert_world.h"

namespace orchard::testing {
namespace {

// Who a row is. Padding is nobody.
struct Row {
  int source = -1;
  std::int64_t token = -1, target = -1;
  bool operator==(const Row&) const = default;
};

void PrintTo(const Row& row, std::ostream* out) {
  *out << "rank " << row.source << " token " << row.token << " target " << row.target;
}

using Buffer = std::vector<Row>;

Buffer copied(const std::vector<RowRun>& runs, const Buffer& from, std::int64_t rows) {
  if (runs.empty()) return {from.begin(), from.begin() + rows};
  Buffer to(static_cast<std::size_t>(rows), Row{.source = -2});
  for (const RowRun& run : runs) {
    for (std::int32_t i = 0; i < run.count; ++i)
      to[static_cast<std::size_t>(run.to + i)] =
          run.from < 0 ? Row{} : from.at(static_cast<std::size_t>(run.from + i));
  }
  return to;
}

struct Case {
  ExpertWorld world;
  Choosing choosing;
  std::vector<std::int64_t> tokens;  // of each rank, the last one repeated
  int k = 2;
};

void PrintTo(const Case& c, std::ostream* out) {
  *out << c.world.to_string();
}

class ExpertJourney : public ::testing::TestWithParam<Case> {
 protected:
  ExpertJourney() {
    const Case& c = GetParam();
    const ExpertPlacement any = c.world.placement(0);
    const std::vector<std::int32_t> table = any.target_table();
    const auto targets = static_cast<std::size_t>(any.targets());
    const auto nodes = static_cast<std::size_t>(any.nodes());
    const std::size_t stride = targets + 1 + nodes + 1;
    std::vector<std::int32_t> offsets(static_cast<std::size_t>(size()) * stride);
    for (int rank = 0; rank < size(); ++rank) {
      placements.push_back(c.world.placement(rank));
      const auto at = std::min(static_cast<std::size_t>(rank), c.tokens.size() - 1);
      const auto chosen = choose(c.tokens[at], c.k, any.experts(), c.choosing, 5U + unsigned(rank));
      std::vector<Buffer> blocks(targets), of_node(nodes);
      for (std::size_t t = 0; t < chosen.size(); ++t) {
        for (const int expert : chosen[t]) {
          for (int part = 0; expert >= 0 && part < any.parts(); ++part) {
            const std::int32_t target =
                table[static_cast<std::size_t>(expert * any.parts() + part)];
            const Row row{rank, static_cast<std::int64_t>(t), target};
            blocks[static_cast<std::size_t>(target)].push_back(row);
            Buffer& node = of_node[static_cast<std::size_t>(any.node_of(any.place_of(target)))];
            if (node.empty() || node.back().token != row.token)
              node.push_back({rank, row.token, -1});
          }
        }
      }
      std::int32_t* const mine = &offsets[static_cast<std::size_t>(rank) * stride];
      Buffer& owned = owners.emplace_back();
      for (std::size_t i = 0; i < targets; ++i) {
        owned.insert(owned.end(), blocks[i].begin(), blocks[i].end());
        mine[i + 1] = static_cast<std::int32_t>(owned.size());
      }
      Buffer& shared = tokens_of_nodes.emplace_back();
      for (std::size_t i = 0; i < nodes; ++i) {
        shared.insert(shared.end(), of_node[i].begin(), of_node[i].end());
        mine[targets + 2 + i] = static_cast<std::int32_t>(shared.size());
      }
    }
    traffic.emplace(size(), any.targets(), any.nodes(), offsets, stride);
    for (int rank = 0; rank < size(); ++rank) experts.push_back(expected_at(rank));
  }

  int size() const { return GetParam().world.size(); }

  // By expert, then source, then token, zeros behind each expert.
  Buffer expected_at(int rank) const {
    Buffer rows;
    const std::int64_t local = placements[0].local_experts();
    for (std::int64_t target = rank * local; target < (rank + 1) * local; ++target) {
      for (const Buffer& owned : owners) {
        std::copy_if(owned.begin(), owned.end(), std::back_inserter(rows),
                     [&](const Row& row) { return row.target == target; });
      }
      rows.resize((rows.size() + row_multiple - 1) / row_multiple * row_multiple);
    }
    return rows;
  }

  // All ranks' buffers after a hop that all take together.
  std::vector<Buffer> hop(const std::vector<const Hop*>& hops, const std::vector<Buffer>& held) {
    std::vector<std::vector<Buffer>> sent(held.size());  // by sender and receiver
    for (int from = 0; from < size(); ++from) {
      const auto f = static_cast<std::size_t>(from);
      const Hop& h = *hops[f];
      const Buffer all = copied(h.runs, held[f], h.sent);
      EXPECT_EQ(static_cast<std::int64_t>(all.size()), h.sent);
      sent[f].resize(held.size());
      auto next = all.begin();
      for (std::size_t i = 0; i < h.send_rows.size(); ++i) {
        const int to = place_of(h, from, i);
        sent[f][static_cast<std::size_t>(to)].assign(next, next + h.send_rows[i]);
        next += h.send_rows[i];
      }
    }
    std::vector<Buffer> received(held.size());
    for (int to = 0; to < size(); ++to) {
      const auto t = static_cast<std::size_t>(to);
      const Hop& h = *hops[t];
      for (std::size_t i = 0; i < h.receive_rows.size(); ++i) {
        const Buffer& part = sent[static_cast<std::size_t>(place_of(h, to, i))][t];
        EXPECT_EQ(static_cast<std::int64_t>(part.size()), h.receive_rows[i])
            << "rank " << to << " from the rank at place " << i;
        received[t].insert(received[t].end(), part.begin(), part.end());
      }
      EXPECT_EQ(static_cast<std::int64_t>(received[t].size()), h.received);
    }
    return received;
  }

  int place_of(const Hop& h, int rank, std::size_t i) const {
    const ExpertPlacement& p = placements[static_cast<std::size_t>(rank)];
    return h.group == HopGroup::layer ? static_cast<int>(i) : p.members(p.node())[i];
  }

  std::vector<Buffer> walk(const std::vector<Journey>& journeys, std::vector<Buffer> held) {
    for (std::size_t h = 0; h < journeys[0].hops.size(); ++h) {
      std::vector<const Hop*> hops;
      hops.reserve(journeys.size());
      for (const Journey& journey : journeys) hops.push_back(&journey.hops[h]);
      held = hop(hops, held);
    }
    return held;
  }

  std::vector<ExpertPlacement> placements;
  std::vector<Buffer> owners, tokens_of_nodes, experts;
  std::optional<ExpertTraffic> traffic;
};

TEST_P(ExpertJourney, RowsReachTheirExpertsInOrderAndComeBack) {
  for (const ExpertWay way : {ExpertWay::direct, ExpertWay::by_node}) {
    std::vector<Journey> there, back;
    for (const ExpertPlacement& placement : placements) {
      there.push_back(to_experts(placement, *traffic, way));
      back.push_back(to_owners(placement, *traffic, way));
    }
    std::vector<Buffer> arrived = walk(there, owners);
    for (std::size_t r = 0; r < arrived.size(); ++r) {
      EXPECT_EQ(expert_row_offsets(placements[r], *traffic).back(),
                static_cast<std::int64_t>(experts[r].size()));
      EXPECT_EQ(copied(there[r].arrival, arrived[r], static_cast<std::int64_t>(experts[r].size())),
                experts[r])
          << "rank " << r;
    }
    std::vector<Buffer> returned = walk(back, experts);
    for (std::size_t r = 0; r < returned.size(); ++r) {
      EXPECT_EQ(copied(back[r].arrival, returned[r], traffic->rows_of(static_cast<int>(r))),
                owners[r])
          << "rank " << r;
    }
  }
}

TEST_P(ExpertJourney, ATokenCrossesToANodeOnce) {
  std::vector<SharedJourney> there;
  std::vector<Journey> to_node;
  std::vector<const Hop*> last;
  for (const ExpertPlacement& placement : placements)
    there.push_back(to_experts_once_a_node(placement, *traffic));
  for (const SharedJourney& journey : there) {
    to_node.push_back(journey.to_node);
    last.push_back(&journey.last);
  }
  std::vector<Buffer> held = walk(to_node, tokens_of_nodes);
  const std::int64_t local = placements[0].local_experts();
  for (std::size_t r = 0; r < held.size(); ++r) {
    // What the rank makes of them: a row for each choice on its node, by target, in token order.
    Buffer rows;
    for (const int member : placements[r].members(placements[r].node())) {
      for (std::int64_t target = member * local; target < (member + 1) * local; ++target) {
        for (const Row& token : held[r]) {
          const Buffer& owned = owners[static_cast<std::size_t>(token.source)];
          const Row row{token.source, token.token, target};
          if (std::find(owned.begin(), owned.end(), row) != owned.end()) rows.push_back(row);
        }
      }
    }
    EXPECT_TRUE(there[r].last.runs.empty());
    held[r] = rows;
  }
  held = hop(last, held);
  for (std::size_t r = 0; r < held.size(); ++r) {
    EXPECT_EQ(copied(there[r].arrival, held[r], static_cast<std::int64_t>(experts[r].size())),
              experts[r])
        << "rank " << r;
  }
}

TEST_P(ExpertJourney, OneMessageANodePair) {
  const int nodes = placements[0].nodes();
  for (const bool back : {false, true}) {
    std::vector<std::vector<int>> messages(static_cast<std::size_t>(nodes),
                                           std::vector<int>(static_cast<std::size_t>(nodes)));
    for (const ExpertPlacement& placement : placements) {
      const Journey journey = back ? to_owners(placement, *traffic, ExpertWay::by_node)
                                   : to_experts(placement, *traffic, ExpertWay::by_node);
      std::int64_t across = 0;
      for (const Hop& h : journey.hops) {
        across += rows_across_nodes(placement, h);
        if (h.group == HopGroup::node) continue;
        for (int to = 0; to < size(); ++to) {
          if (h.send_rows[static_cast<std::size_t>(to)] > 0)
            ++messages[static_cast<std::size_t>(placement.node())]
                      [static_cast<std::size_t>(placement.node_of(to))];
        }
      }
      EXPECT_LE(across, journey.hops[1].sent);
    }
    for (int from = 0; from < nodes; ++from) {
      for (int to = 0; to < nodes; ++to) {
        if (from == to) continue;
        EXPECT_LE(messages[static_cast<std::size_t>(from)][static_cast<std::size_t>(to)], 1)
            << from << " to " << to;
      }
    }
  }
}

// A list filled at run time: GCC 12 takes a braced list of these for uninitialised memory.
std::vector<Case> cases() {
  std::vector<Case> list;
  const auto add = [&](const ExpertWorld& world, Choosing choosing,
                       const std::vector<std::int64_t>& tokens, int k = 2) {
    list.push_back({world, choosing, tokens, k});
  };
  add({4, 1, 1, {1}}, Choosing::random, {7});
  add({4, 2, 1, {2}}, Choosing::random, {40, 3});
  add({4, 2, 1, {1, 1}}, Choosing::random, {0, 65});
  add({8, 4, 1, {2, 2}}, Choosing::random, {33, 0, 1, 70});
  add({8, 4, 1, {3, 1}}, Choosing::some_dropped, {33, 31, 1, 70});
  add({8, 4, 2, {4, 4}}, Choosing::random, {29, 8});
  add({8, 4, 2, {3, 3, 2}}, Choosing::upper_experts, {29, 8, 0}, 3);
  add({8, 2, 4, {2, 2, 2, 2}}, Choosing::one_expert, {50, 0, 1});
  add({6, 1, 4, {3, 1}}, Choosing::random, {5});
  add({64, 8, 1, {4, 4}}, Choosing::nothing, {5});
  add({64, 8, 1, {1, 2, 5}}, Choosing::random, {100}, 8);
  add({16, 16, 1, {5, 5, 6}}, Choosing::random, {40, 1}, 4);
  return list;
}

INSTANTIATE_TEST_SUITE_P(Worlds, ExpertJourney, ::testing::ValuesIn(cases()),
                         [](const auto& test) { return "case_" + std::to_string(test.index); });

TEST(ExpertPlacement, RefusesWhatIsNoGrid) {
  EXPECT_EQ(message_of([] {
              ExpertPlacement(4, {{.expert = 0}, {.expert = 0}}, 0);
            }),
            "two ranks of a group are at ep0 etp0");
  EXPECT_EQ(message_of([] {
              ExpertPlacement(4, {{.expert = 0}, {.expert = 2}}, 0);
            }),
            "2 ranks cannot hold 4 experts as ep 3 x etp 1");
  EXPECT_EQ(message_of([] {
              ExpertPlacement(3, {{.expert = 0}, {.expert = 1}}, 0);
            }),
            "2 ranks cannot hold 3 experts as ep 2 x etp 1");
}

// tp 2, dp 2, ep 2, etp 2 in the order ep-tp-dp-pp: the group lists world ranks, whose coordinates
// run otherwise.
TEST(ExpertPlacement, FollowsTheMesh) {
  const Mesh mesh(
      4, {.tensor = 2, .expert = 2, .expert_tensor = 2, .order = parse_rank_order("ep-tp-dp-pp")});
  const std::vector<int> nodes = {7, 7, 3, 3};
  const ExpertPlacement placement = ExpertPlacement::of(mesh, 2, 4, nodes);
  EXPECT_EQ(placement.place(), 2);
  EXPECT_EQ(placement.parts(), 2);
  EXPECT_EQ(placement.local_experts(), 2);
  EXPECT_EQ(placement.nodes(), 2);
  // Ranks 0 ... 3 are (ep0 etp0), (ep1 etp0), (ep0 etp1), (ep1 etp1), with two targets each.
  EXPECT_EQ(placement.target_table(), (std::vector<std::int32_t>{0, 4, 1, 5, 2, 6, 3, 7}));
  EXPECT_EQ(placement.node_table(), (std::vector<std::int32_t>{0, 1, 0, 1, 0, 1, 0, 1}));
  EXPECT_EQ(placement.own_node_table(), (std::vector<std::int32_t>{-1, -1, -1, -1, 0, 1, 2, 3}));
}

}  // namespace
}  // namespace orchard::testing
