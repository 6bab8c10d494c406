#include "parallel/expert_journey.h"

#include <algorithm>
#include <functional>
#include <numeric>

#include "kernels/core/error.h"
#include "kernels/permute/permute.h"

namespace orchard {
namespace {

// What one rank has for one goal: a target, or a node.
struct Block {
  int source = 0;
  std::int64_t goal = 0;
};

using Held = std::vector<std::vector<Block>>;  // by place, in the order of the rank's buffer

void append(std::vector<RowRun>& runs, std::int64_t from, std::int64_t to, std::int64_t count) {
  if (count == 0) return;
  if (!runs.empty()) {
    RowRun& last = runs.back();
    const bool zeros = from < 0 && last.from < 0;
    const bool follows = zeros || (from >= 0 && last.from >= 0 && last.from + last.count == from);
    if (follows && last.to + last.count == to) {
      last.count += static_cast<std::int32_t>(count);
      return;
    }
  }
  runs.push_back({static_cast<std::int32_t>(from), static_cast<std::int32_t>(to),
                  static_cast<std::int32_t>(count)});
}

// Runs that leave every row where it is say so by being none.
std::vector<RowRun> unless_identity(std::vector<RowRun> runs) {
  if (runs.size() == 1 && runs[0].from == 0 && runs[0].to == 0) runs.clear();
  return runs;
}

// The rank of a node that exchanges rows with another node.
int gateway(const ExpertPlacement& placement, int node, int other) {
  const auto members = placement.members(node);
  return members[static_cast<std::size_t>(other) % members.size()];
}

// All blocks of a layer on their way. Every rank follows all of them: only so does it know in which
// order the others send.
class Walk {
 public:
  // `first_rows` of this rank's blocks; none: they follow each other.
  Walk(const ExpertPlacement& placement, std::function<std::int64_t(const Block&)> rows, Held held,
       std::vector<std::int64_t> first_rows = {})
      : placement_(placement),
        rows_(std::move(rows)),
        held_(std::move(held)),
        first_rows_(std::move(first_rows)) {
    if (first_rows_.empty()) line_up();
  }

  // Every block moves on to the rank next(holder, block).
  template <class Next>
  Hop move(HopGroup group, const Next& next) {
    const int me = placement_.place();
    std::vector<int> places(static_cast<std::size_t>(placement_.size()));
    std::iota(places.begin(), places.end(), 0);
    if (group == HopGroup::node) {
      const auto members = placement_.members(placement_.node());
      places.assign(members.begin(), members.end());
    }
    const auto in_group = [&](int place) {
      return static_cast<std::size_t>(std::lower_bound(places.begin(), places.end(), place) -
                                      places.begin());
    };
    Hop hop{.group = group};
    hop.send_rows.resize(places.size());
    hop.receive_rows.resize(places.size());

    std::vector<std::size_t> order(mine().size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
      return next(me, mine()[a]) < next(me, mine()[b]);
    });
    for (const std::size_t i : order) {
      const std::int64_t count = rows_(mine()[i]);
      append(hop.runs, first_rows_[i], hop.sent, count);
      hop.send_rows[in_group(next(me, mine()[i]))] += count;
      hop.sent += count;
    }
    hop.runs = unless_identity(std::move(hop.runs));

    Held arrived(held_.size());
    for (int from = 0; from < placement_.size(); ++from) {
      for (const Block& block : held_[static_cast<std::size_t>(from)]) {
        const int to = next(from, block);
        arrived[static_cast<std::size_t>(to)].push_back(block);
        if (to != me) continue;
        hop.receive_rows[in_group(from)] += rows_(block);
        hop.received += rows_(block);
      }
    }
    held_ = std::move(arrived);
    line_up();
    return hop;
  }

  // From where this rank's blocks lie to where they belong.
  template <class Row>
  std::vector<RowRun> arrange(const Row& row_of) const {
    std::vector<RowRun> runs;
    for (std::size_t i = 0; i < mine().size(); ++i)
      append(runs, first_rows_[i], row_of(mine()[i]), rows_(mine()[i]));
    return runs;
  }

  const std::vector<Block>& mine() const {
    return held_[static_cast<std::size_t>(placement_.place())];
  }
  const Held& held() const { return held_; }

 private:
  void line_up() {
    first_rows_.clear();
    std::int64_t row = 0;
    for (const Block& block : mine()) {
      first_rows_.push_back(row);
      row += rows_(block);
    }
  }

  const ExpertPlacement& placement_;
  std::function<std::int64_t(const Block&)> rows_;
  Held held_;
  std::vector<std::int64_t> first_rows_;  // of this rank's blocks
};

// Where the experts of this rank expect their blocks.
class ExpertRows {
 public:
  ExpertRows(const ExpertPlacement& placement, const ExpertTraffic& traffic)
      : first_target_(placement.place() * placement.local_experts()), ranks_(placement.size()) {
    const std::vector<std::int32_t> offsets = expert_row_offsets(placement, traffic);
    for (std::int64_t i = 0; i < placement.local_experts(); ++i) {
      std::int64_t row = offsets[static_cast<std::size_t>(i)];
      for (int source = 0; source < ranks_; ++source) {
        rows_.push_back(row);
        row += traffic.rows(source, first_target_ + i);
      }
      append(padding_, -1, row, offsets[static_cast<std::size_t>(i) + 1] - row);
    }
  }

  std::int64_t operator()(const Block& block) const {
    return rows_[static_cast<std::size_t>((block.goal - first_target_) * ranks_ + block.source)];
  }

  // Runs that bring the blocks there, and zeros between them.
  std::vector<RowRun> arrival(const Walk& walk) const {
    std::vector<RowRun> runs = walk.arrange(*this);
    runs.insert(runs.end(), padding_.begin(), padding_.end());
    return unless_identity(std::move(runs));
  }

 private:
  std::int64_t first_target_;
  int ranks_;
  std::vector<std::int64_t> rows_;  // [local experts, ranks]
  std::vector<RowRun> padding_;
};

Held owners_order(const ExpertPlacement& placement) {
  Held held(static_cast<std::size_t>(placement.size()));
  for (int source = 0; source < placement.size(); ++source) {
    for (std::int64_t t = 0; t < placement.targets(); ++t)
      held[static_cast<std::size_t>(source)].push_back({source, t});
  }
  return held;
}

// The two ranks by which a block goes from its owner's node to its target's: the rank itself where
// both are on one node.
struct Gateways {
  const ExpertPlacement& placement;

  int of_owner(int source, int node) const {
    const int own = placement.node_of(source);
    return own == node ? source : gateway(placement, own, node);
  }
  int of_node(int source, int node) const {
    const int own = placement.node_of(source);
    return own == node ? source : gateway(placement, node, own);
  }
};

}  // namespace

ExpertTraffic::ExpertTraffic(std::int64_t ranks, std::int64_t targets, std::int64_t nodes,
                             std::span<const std::int32_t> offsets, std::int64_t stride)
    : targets_(targets), nodes_(nodes) {
  require(static_cast<std::int64_t>(offsets.size()) >=
              (ranks - 1) * stride + targets + 1 + (nodes > 0 ? nodes + 1 : 0),
          "the offsets of {} ranks are too few", ranks);
  for (std::int64_t rank = 0; rank < ranks; ++rank) {
    const auto first = offsets.begin() + rank * stride;
    offsets_.insert(offsets_.end(), first, first + targets + 1);
    if (nodes > 0)
      node_offsets_.insert(node_offsets_.end(), first + targets + 1,
                           first + targets + 1 + nodes + 1);
  }
}

ExpertTraffic ExpertTraffic::even(const ExpertPlacement& placement, std::int64_t rows) {
  std::vector<std::int32_t> offsets;
  for (std::int64_t target = 0; target <= placement.targets(); ++target)
    offsets.push_back(static_cast<std::int32_t>(target * rows));
  return {placement.size(), placement.targets(), 0, offsets, /*stride=*/0};
}

std::int64_t ExpertTraffic::rows_of(int source) const {
  const auto first = static_cast<std::size_t>(source * (targets_ + 1));
  return offsets_[first + static_cast<std::size_t>(targets_)] - offsets_[first];
}

std::int64_t ExpertTraffic::tokens_of(int source) const {
  const auto first = static_cast<std::size_t>(source * (nodes_ + 1));
  return node_offsets_[first + static_cast<std::size_t>(nodes_)] - node_offsets_[first];
}

std::vector<std::int32_t> expert_row_offsets(const ExpertPlacement& placement,
                                             const ExpertTraffic& traffic) {
  std::vector<std::int32_t> offsets = {0};
  for (std::int64_t i = 0; i < placement.local_experts(); ++i) {
    std::int64_t rows = 0;
    for (int source = 0; source < placement.size(); ++source)
      rows += traffic.rows(source, placement.place() * placement.local_experts() + i);
    const std::int64_t padded = (rows + row_multiple - 1) / row_multiple * row_multiple;
    offsets.push_back(static_cast<std::int32_t>(offsets.back() + padded));
  }
  return offsets;
}

Journey to_experts(const ExpertPlacement& placement, const ExpertTraffic& traffic, ExpertWay way) {
  Walk walk(
      placement, [&](const Block& b) { return traffic.rows(b.source, b.goal); },
      owners_order(placement));
  const Gateways gateways{placement};
  const auto node_of = [&](const Block& b) {
    return placement.node_of(placement.place_of(b.goal));
  };
  Journey journey;
  if (way == ExpertWay::by_node) {
    journey.hops.push_back(walk.move(HopGroup::node, [&](int, const Block& b) {
      return gateways.of_owner(b.source, node_of(b));
    }));
    journey.hops.push_back(walk.move(HopGroup::layer, [&](int, const Block& b) {
      return gateways.of_node(b.source, node_of(b));
    }));
  }
  journey.hops.push_back(
      walk.move(way == ExpertWay::by_node ? HopGroup::node : HopGroup::layer,
                [&](int, const Block& b) { return placement.place_of(b.goal); }));
  journey.arrival = ExpertRows(placement, traffic).arrival(walk);
  return journey;
}

Journey to_owners(const ExpertPlacement& placement, const ExpertTraffic& traffic, ExpertWay way) {
  Held held(static_cast<std::size_t>(placement.size()));
  for (int place = 0; place < placement.size(); ++place) {
    for (int source = 0; source < placement.size(); ++source) {
      for (std::int64_t i = 0; i < placement.local_experts(); ++i)
        held[static_cast<std::size_t>(place)].push_back(
            {source, place * placement.local_experts() + i});
    }
  }
  const ExpertRows expert_rows(placement, traffic);
  std::vector<std::int64_t> first_rows;
  for (const Block& block : held[static_cast<std::size_t>(placement.place())])
    first_rows.push_back(expert_rows(block));
  Walk walk(
      placement, [&](const Block& b) { return traffic.rows(b.source, b.goal); }, std::move(held),
      std::move(first_rows));
  const Gateways gateways{placement};
  const auto node_of = [&](const Block& b) {
    return placement.node_of(placement.place_of(b.goal));
  };
  Journey journey;
  if (way == ExpertWay::by_node) {
    // Rows for the rank's own node stay with it for two hops.
    journey.hops.push_back(walk.move(HopGroup::node, [&](int holder, const Block& b) {
      const bool stays = placement.node_of(b.source) == node_of(b);
      return stays ? holder : gateways.of_node(b.source, node_of(b));
    }));
    journey.hops.push_back(walk.move(HopGroup::layer, [&](int holder, const Block& b) {
      const bool stays = placement.node_of(b.source) == node_of(b);
      return stays ? holder : gateways.of_owner(b.source, node_of(b));
    }));
  }
  journey.hops.push_back(walk.move(way == ExpertWay::by_node ? HopGroup::node : HopGroup::layer,
                                   [](int, const Block& b) { return b.source; }));
  std::vector<std::int64_t> owner_rows = {0};
  for (std::int64_t t = 0; t < placement.targets(); ++t)
    owner_rows.push_back(owner_rows.back() + traffic.rows(placement.place(), t));
  journey.arrival = unless_identity(
      walk.arrange([&](const Block& b) { return owner_rows[static_cast<std::size_t>(b.goal)]; }));
  return journey;
}

SharedJourney to_experts_once_a_node(const ExpertPlacement& placement,
                                     const ExpertTraffic& traffic) {
  Held held(static_cast<std::size_t>(placement.size()));
  for (int source = 0; source < placement.size(); ++source) {
    for (int node = 0; node < placement.nodes(); ++node)
      held[static_cast<std::size_t>(source)].push_back({source, node});
  }
  Walk tokens(
      placement, [&](const Block& b) { return traffic.tokens(b.source, static_cast<int>(b.goal)); },
      std::move(held));
  const Gateways gateways{placement};
  SharedJourney journey;
  journey.to_node.hops.push_back(tokens.move(HopGroup::node, [&](int, const Block& b) {
    return gateways.of_owner(b.source, static_cast<int>(b.goal));
  }));
  journey.to_node.hops.push_back(tokens.move(HopGroup::layer, [&](int, const Block& b) {
    return gateways.of_node(b.source, static_cast<int>(b.goal));
  }));

  // The rows that a rank makes of the tokens it holds now: for each target of its node, by source.
  Held rows(static_cast<std::size_t>(placement.size()));
  for (int place = 0; place < placement.size(); ++place) {
    for (const int member : placement.members(placement.node_of(place))) {
      for (std::int64_t i = 0; i < placement.local_experts(); ++i) {
        for (const Block& b : tokens.held()[static_cast<std::size_t>(place)])
          rows[static_cast<std::size_t>(place)].push_back(
              {b.source, member * placement.local_experts() + i});
      }
    }
  }
  Walk walk(
      placement, [&](const Block& b) { return traffic.rows(b.source, b.goal); }, std::move(rows));
  journey.last =
      walk.move(HopGroup::node, [&](int, const Block& b) { return placement.place_of(b.goal); });
  journey.arrival = ExpertRows(placement, traffic).arrival(walk);
  return journey;
}

std::int64_t rows_across_nodes(const ExpertPlacement& placement, const Hop& hop) {
  if (hop.group == HopGroup::node) return 0;
  std::int64_t rows = 0;
  for (int place = 0; place < placement.size(); ++place) {
    if (placement.node_of(place) != placement.node())
      rows += hop.send_rows[static_cast<std::size_t>(place)];
  }
  return rows;
}

}  // namespace orchard
