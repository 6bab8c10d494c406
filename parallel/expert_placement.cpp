#include "parallel/expert_placement.h"

#include <algorithm>
#include <set>
#include <utility>

#include "kernels/core/error.h"

namespace orchard {

ExpertPlacement::ExpertPlacement(std::int64_t experts, std::vector<ExpertRank> ranks, int place)
    : experts_(experts), local_(experts), parts_(1), place_(place), ranks_(std::move(ranks)) {
  require(place >= 0 && place < size(), "place {} in a group of {} ranks", place, size());
  int expert_ranks = 1;
  std::set<std::pair<int, int>> seen;
  for (const ExpertRank& rank : ranks_) {
    expert_ranks = std::max(expert_ranks, rank.expert + 1);
    parts_ = std::max(parts_, rank.part + 1);
    require(rank.expert >= 0 && rank.part >= 0 && seen.insert({rank.expert, rank.part}).second,
            "two ranks of a group are at ep{} etp{}", rank.expert, rank.part);
  }
  require(expert_ranks * parts_ == size() && experts % expert_ranks == 0,
          "{} ranks cannot hold {} experts as ep {} x etp {}", size(), experts, expert_ranks,
          parts_);
  local_ = experts / expert_ranks;

  std::vector<int> names;  // of nodes, in order of appearance
  for (int i = 0; i < size(); ++i) {
    ExpertRank& rank = ranks_[static_cast<std::size_t>(i)];
    const auto found = std::find(names.begin(), names.end(), rank.node);
    const auto node = static_cast<std::size_t>(found - names.begin());
    if (found == names.end()) {
      names.push_back(rank.node);
      members_.emplace_back();
    }
    members_[node].push_back(i);
    rank.node = static_cast<int>(node);
  }
}

ExpertPlacement ExpertPlacement::of(const Mesh& mesh, int rank, std::int64_t experts,
                                    std::span<const int> nodes) {
  const std::vector<int> group = mesh.group(MeshGroup::expert_layer, rank);
  require(nodes.size() == group.size(), "a group of {} ranks was given {} nodes", group.size(),
          nodes.size());
  std::vector<ExpertRank> ranks;
  int place = 0;
  for (std::size_t i = 0; i < group.size(); ++i) {
    const MeshCoordinates at = mesh.coordinates(group[i]);
    ranks.push_back({.expert = at.expert, .part = at.expert_tensor, .node = nodes[i]});
    if (group[i] == rank) place = static_cast<int>(i);
  }
  return {experts, std::move(ranks), place};
}

std::vector<std::int32_t> ExpertPlacement::target_table() const {
  std::vector<std::int32_t> table(static_cast<std::size_t>(experts_ * parts_));
  for (int place = 0; place < size(); ++place) {
    const ExpertRank& rank = ranks_[static_cast<std::size_t>(place)];
    for (std::int64_t i = 0; i < local_; ++i) {
      table[static_cast<std::size_t>((rank.expert * local_ + i) * parts_ + rank.part)] =
          static_cast<std::int32_t>(place * local_ + i);
    }
  }
  return table;
}

std::vector<std::int32_t> ExpertPlacement::node_table() const {
  std::vector<std::int32_t> table = target_table();
  for (std::int32_t& target : table) target = node_of(place_of(target));
  return table;
}

std::vector<std::int32_t> ExpertPlacement::own_node_table() const {
  std::vector<std::int32_t> table(static_cast<std::size_t>(targets()), -1);
  std::int32_t next = 0;
  for (const int place : members(node())) {
    for (std::int64_t i = 0; i < local_; ++i)
      table[static_cast<std::size_t>(place * local_ + i)] = next++;
  }
  return table;
}

}  // namespace orchard
