// The bytes that a sparse layer sends, forward and backward, are those that its routing asks for, or
// where messages have a fixed size those that its capacity allows: a message too many would show. Run
// under mpirun.
#include <gtest/gtest.h>

#include "kernels/permute/exchange.h"
#include "tests/comm/ranks_test.h"
#include "tests/models/sparse_layer.h"

namespace orchard::testing {
namespace {

constexpr std::int64_t hidden = 32, experts = 8, k = 2, f32_bytes = 4;

// A row that travels: of one token, to one part of one expert.
struct Row {
  int owner = 0, holder = 0;  // places in the group: of the token, of the expert's part
  std::int64_t token = 0;
};

class ExpertBytes : public ::testing::Test {
 protected:
  void SetUp() override {
    world_ = session->world({.ranks_per_node = 2});
    device_ = make_cpu_device({.threads = 1});
  }

  // Counts in `ways_` which way the rows went.
  void expect_formula(const LayerCase& c) {
    SCOPED_TRACE(c.to_string());
    if (world_->rank() >= c.ranks || world_->size() < c.ranks) return;
    std::vector<int> places(static_cast<std::size_t>(c.ranks));
    std::iota(places.begin(), places.end(), 0);
    const auto group = world_->make_group("first", places);
    const LayerResult alone = run_alone(*device_, c, c.layout.data(c.ranks));
    const ParallelContext parallel(*group, c.layout, c.sequence_parallel);
    SparseLayer layer(*device_, c, &parallel);
    const int data = parallel.coordinates().data;
    Communicator& of_layer = parallel[MeshGroup::expert_layer];
    const std::string of_node = of_layer.name() + " of a node";
    const auto done = [&](std::string_view name, CommOp op) {
      return of_layer.log().statistics(name, op);
    };
    struct Counted {
      std::int64_t calls, bytes;
      bool operator==(const Counted&) const = default;
    };
    const auto counted = [&](std::string_view name, CommOp op, const auto& body) {
      const OperationStatistics before = done(name, op);
      body();
      const OperationStatistics after = done(name, op);
      return Counted{after.calls - before.calls, after.bytes - before.bytes};
    };
    Counted node{}, gathers{}, tensor{};
    const auto& chosen = alone.micro_batches[static_cast<std::size_t>(data)].chosen;
    const Counted messages = counted(of_layer.name(), CommOp::all_to_all, [&] {
      node = counted(of_node, CommOp::all_to_all, [&] {
        gathers = counted(of_layer.name(), CommOp::all_gather, [&] {
          tensor = counted("tp", CommOp::all_gather, [&] { layer.step(data, &chosen); });
        });
      });
    });

    const Expected expected = expect(c, parallel, alone);
    EXPECT_EQ(messages.bytes, expected.layer);
    EXPECT_EQ(node.bytes, expected.node);
    EXPECT_EQ(tensor.bytes, expected.tensor);
    EXPECT_EQ(messages.calls, 4 * c.options.chunks);
    EXPECT_EQ(node.calls, expected.by_node ? 8 * c.options.chunks : 0);
    const bool counts_rows = c.sizes == MicroBatchSizes::any;
    EXPECT_EQ(gathers.calls, counts_rows ? 1 : 0) << "exchanges of counts";
    const std::int64_t size = of_layer.size();
    const std::int64_t counts =
        experts / c.layout.expert * size + 1 +
        (expected.may_be_by_node ? layer.dispatcher().placement().nodes() + 1 : 0);
    EXPECT_EQ(gathers.bytes, counts_rows ? size * c.options.chunks * counts * f32_bytes : 0);
    if (expected.may_be_by_node) ++(expected.by_node ? ways_.by_node : ways_.direct);
  }

  struct Expected {
    bool may_be_by_node = false;  // there are nodes to choose between
    bool by_node = false;
    std::int64_t layer = 0, node = 0, tensor = 0;
  };

  // What this rank sends, itself included, by a walk over every choice of every rank.
  static Expected expect(const LayerCase& c, const ParallelContext& parallel,
                         const LayerResult& alone) {
    const Communicator& group = parallel[MeshGroup::expert_layer];
    const std::vector<int> members =
        parallel.mesh().group(MeshGroup::expert_layer, parallel.rank());
    const int me = group.rank(), tp = c.layout.tensor;
    const auto share = [tp](std::int64_t rows) { return (rows + tp - 1) / tp; };
    const bool fixed = c.sizes == MicroBatchSizes::alike;
    std::vector<Row> rows;
    for (int owner = 0; owner < group.size(); ++owner) {
      if (fixed) {
        const std::int64_t of_holder = experts / c.layout.expert * fixed_rows(c) * c.options.chunks;
        for (int holder = 0; holder < group.size(); ++holder)
          rows.insert(rows.end(), static_cast<std::size_t>(of_holder), {owner, holder, 0});
        continue;
      }
      const MeshCoordinates at =
          parallel.mesh().coordinates(members[static_cast<std::size_t>(owner)]);
      const auto& chosen = alone.micro_batches[static_cast<std::size_t>(at.data)].chosen;
      const std::int64_t all = std::ssize(chosen) / k, part = share(all);
      for (std::int64_t token = at.tensor * part; token < std::min((at.tensor + 1) * part, all);
           ++token) {
        for (std::int64_t j = 0; j < k; ++j) {
          const std::int32_t expert = chosen[static_cast<std::size_t>(token * k + j)];
          for (int holder = 0; holder < group.size() && expert >= 0; ++holder) {
            const MeshCoordinates there =
                parallel.mesh().coordinates(members[static_cast<std::size_t>(holder)]);
            if (there.expert == expert / (experts / c.layout.expert))
              rows.push_back({owner, holder, token});
          }
        }
      }
    }

    Expected expected;
    const auto node_of = [&](int place) { return group.nodes()[static_cast<std::size_t>(place)]; };
    const auto members_of = [&](int node) {
      std::vector<int> found;
      for (int place = 0; place < group.size(); ++place)
        if (node_of(place) == node) found.push_back(place);
      return found;
    };
    const auto nodes = [&] {
      std::vector<int> found;
      for (int place = 0; place < group.size(); ++place)
        if (std::ranges::find(found, node_of(place)) == found.end())
          found.push_back(node_of(place));
      return found;
    }();
    expected.may_be_by_node = c.options.dispatch != ExpertDispatch::direct && nodes.size() > 1 &&
                              static_cast<int>(nodes.size()) < group.size();
    expected.by_node = expected.may_be_by_node;
    if (c.options.dispatch == ExpertDispatch::automatic) {
      // The mean message of a rank to one of another node is small.
      std::int64_t between = 0, pairs = 0;
      for (const Row& row : rows) between += node_of(row.owner) != node_of(row.holder);
      for (int from = 0; from < group.size(); ++from)
        for (int to = 0; to < group.size(); ++to) pairs += node_of(from) != node_of(to);
      expected.by_node &= between * hidden * f32_bytes <
                          c.options.small_message_bytes * std::max<std::int64_t>(pairs, 1);
    }
    // The rank of `node` that talks to `other`: they take turns in the order of the nodes.
    const auto gateway = [&](int node, int other) {
      const std::vector<int> here = members_of(node);
      const auto at = std::ranges::find(nodes, other) - nodes.begin();
      return here[static_cast<std::size_t>(at) % here.size()];
    };
    const auto first_stop = [&](const Row& row) {
      const int from = node_of(row.owner), to = node_of(row.holder);
      return from == to ? row.owner : gateway(from, to);
    };
    const auto last_stop = [&](const Row& row, int at_home) {
      const int from = node_of(row.owner), to = node_of(row.holder);
      return from == to ? at_home : gateway(to, from);
    };

    const std::int64_t row_bytes = hidden * f32_bytes;
    const std::int64_t token_bytes =
        packed_row_bytes(hidden, DType::f32, k * c.layout.expert_tensor);
    std::vector<std::tuple<int, std::int64_t, int>> tokens;  // owner, token, node: each once
    for (const Row& row : rows) {
      if (!expected.by_node) {
        // Out on dispatch and distribute; back on both collects.
        expected.layer += 2 * row_bytes * ((row.owner == me) + (row.holder == me));
        continue;
      }
      if (!fixed) {
        // Dispatch: the token to its node, once, then the row to its expert.
        const std::tuple token{row.owner, row.token, node_of(row.holder)};
        if (std::ranges::find(tokens, token) == tokens.end()) {
          tokens.push_back(token);
          expected.node += token_bytes * (row.owner == me);
          expected.layer += token_bytes * (first_stop(row) == me);
        }
        expected.node += row_bytes * (last_stop(row, row.owner) == me);
      }
      // Distribute, and dispatch in messages of a fixed size: the row by three hops. Both collects: the
      // same backwards.
      const std::int64_t out = (fixed ? 2 : 1) * row_bytes;
      expected.node += out * ((row.owner == me) + (last_stop(row, row.owner) == me));
      expected.layer += out * (first_stop(row) == me);
      const bool same = node_of(row.owner) == node_of(row.holder);
      expected.node +=
          2 * row_bytes * ((row.holder == me) + ((same ? row.holder : first_stop(row)) == me));
      expected.layer += 2 * row_bytes * (last_stop(row, row.holder) == me);
    }

    expected.tensor = tensor_bytes(c, parallel, alone);
    return expected;
  }

  // Of the group of tensor ranks.
  static std::int64_t tensor_bytes(const LayerCase& c, const ParallelContext& parallel,
                                   const LayerResult& alone) {
    const std::int64_t tp = c.layout.tensor;
    if (tp == 1) return 0;
    const std::int64_t choices = std::ssize(
        alone.micro_batches[static_cast<std::size_t>(parallel.coordinates().data)].chosen);
    const std::int64_t rows = choices / k, share = (rows + tp - 1) / tp;
    return f32_bytes *
           (choices +                                                             // d_gates
            (c.sequence_parallel == SequenceParallel::yes ? share * tp * experts  // logits
                                                          : 2 * rows * hidden));  // y and d_x
  }

  // Of a message, for each expert: as many as any rank could keep in any chunk, row by row, of a sequence
  // while its capacity lasts.
  static std::int64_t fixed_rows(const LayerCase& c) {
    const Tokens& tokens = c.micro_batches[0];
    const std::int64_t length = tokens.length, rows = length * std::ssize(tokens.real),
                       tp = c.layout.tensor, share = (rows + tp - 1) / tp;
    const std::int64_t capacity = expert_capacity(length, c.capacity_factor, experts);
    std::int64_t most = 0;
    for (std::int64_t rank = 0; rank < tp; ++rank) {
      const std::int64_t first = std::min(rank * share, rows),
                         count = std::min(first + share, rows) - first;
      for (int chunk = 0; chunk < c.options.chunks; ++chunk) {
        const std::int64_t end = first + count * (chunk + 1) / c.options.chunks;
        std::map<std::int64_t, std::int64_t> kept;  // by sequence
        std::int64_t all = 0;
        for (std::int64_t row = first + count * chunk / c.options.chunks; row < end; ++row)
          all += kept[row / length]++ < capacity;
        most = std::max(most, all);
      }
    }
    return most;
  }

  struct Ways {
    int direct = 0, by_node = 0;
  };

  std::unique_ptr<Communicator> world_;
  std::unique_ptr<Device> device_;
  Ways ways_;
};

TEST_F(ExpertBytes, FollowFromTheRouting) {
  int cases = 0;
  for (const int ranks : {2, 4, 8}) {
    for (const auto& [tp, ep, etp] :
         {std::tuple{1, 2, 1}, {2, 2, 1}, {1, 4, 1}, {2, 2, 2}, {1, 2, 4}, {2, 8, 1}, {1, 1, 4}}) {
      if (ranks % tp || ranks % (ep * etp)) continue;
      for (const ExpertDispatch way : {ExpertDispatch::direct, ExpertDispatch::by_node}) {
        for (const SequenceParallel shared : {SequenceParallel::no, SequenceParallel::yes}) {
          expect_formula({.layout = {.tensor = tp, .expert = ep, .expert_tensor = etp},
                          .ranks = ranks,
                          .micro_batches = {{{17, 40}, 3}, {{1}, 0}, {{0}, 5}, {{33, 1, 9}, 2}},
                          .sequence_parallel = shared,
                          .options = {.dispatch = way, .chunks = 1 + cases % 2}});
          ++cases;
        }
      }
    }
  }
  EXPECT_GE(cases, 40);
}

// Four sequences are cut into as many as twelve parts.
TEST_F(ExpertBytes, OfFixedMessagesFollowFromTheCapacity) {
  int cases = 0;
  for (const int ranks : {2, 4, 8}) {
    for (const auto& [tp, ep, etp] :
         {std::tuple{1, 2, 1}, {2, 2, 1}, {1, 4, 1}, {2, 2, 2}, {1, 2, 4}, {4, 4, 1}, {1, 1, 4}}) {
      if (ranks % tp || ranks % (ep * etp)) continue;
      for (const auto& [capacity, way] : {std::pair{1.0f, ExpertDispatch::direct},
                                          {1.25f, ExpertDispatch::direct},
                                          {0.1f, ExpertDispatch::direct},
                                          {1.0f, ExpertDispatch::by_node},
                                          {0.1f, ExpertDispatch::by_node}}) {
        const SequenceParallel shared = cases % 2 ? SequenceParallel::no : SequenceParallel::yes;
        expect_formula({.layout = {.tensor = tp, .expert = ep, .expert_tensor = etp},
                        .ranks = ranks,
                        .micro_batches = {{.real = {24, 17, 3, 24}, .length = 24},
                                          {.real = {0, 24, 1, 9}, .length = 24}},
                        .sequence_parallel = shared,
                        .options = {.dispatch = way, .chunks = 1 + cases % 3},
                        .sizes = MicroBatchSizes::alike,
                        .capacity_factor = capacity});
        ++cases;
      }
    }
  }
  EXPECT_GE(cases, 70);
  if (world_->size() == 8) {
    EXPECT_GE(ways_.by_node, 10);
  }
}

// The size of the messages decides: the bytes of either way say which one was taken.
TEST_F(ExpertBytes, FollowFromTheWayThatMessagesOfTheirSizeTake) {
  const auto run = [&](std::int64_t small_message_bytes) {
    ways_ = {};
    for (const auto& [ranks, tp, ep] : {std::tuple{4, 1, 4}, {4, 2, 4}, {8, 2, 8}, {8, 1, 4}}) {
      for (const std::int64_t length : {40, 7}) {
        expect_formula({.layout = {.tensor = tp, .expert = ep},
                        .ranks = ranks,
                        .micro_batches = {{{length, 3 * length}, 3}, {{2 * length}, 0}},
                        .sequence_parallel = SequenceParallel::yes,
                        .options = {.dispatch = ExpertDispatch::automatic,
                                    .small_message_bytes = small_message_bytes}});
      }
    }
    // Of all ranks: one alone may have messages of one size.
    double all[] = {static_cast<double>(ways_.direct), static_cast<double>(ways_.by_node)};
    world_->sum_on_host(all);
    return Ways{static_cast<int>(all[0]), static_cast<int>(all[1])};
  };
  if (world_->size() < 4) GTEST_SKIP() << "needs two nodes of two ranks";
  const Ways one = run(1), any = run(1 << 30), some = run(5000);
  EXPECT_EQ(one.by_node, 0);
  EXPECT_GT(one.direct, 0);
  EXPECT_EQ(any.direct, 0);
  EXPECT_GT(any.by_node, 0);
  EXPECT_GT(some.direct, 0);
  EXPECT_GT(some.by_node, 0);
}

}  // namespace
}  // namespace orchard::testing

int main(int argc, char** argv) {
  return orchard::testing::rank_tests_main(argc, argv);
}
