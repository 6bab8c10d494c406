// Which rank holds which experts, among the ranks that hold the experts of a layer together.
//
// Rank (e, p) of ep x etp holds part p of the experts [e · n, (e + 1) · n), n = experts / ep: of
// w_gate and w_up its share of the columns of the feed-forward, of w_down its share of the rows. So
// the parts' results add up to the expert's, and each token goes to every part of an expert that it
// has chosen. A part of an expert on its rank is called a target; target t lies on the rank at place
// t / n of the group.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "parallel/mesh.h"

namespace orchard {

struct ExpertRank {
  int expert = 0, part = 0;  // coordinates on ep and etp
  int node = 0;              // ranks of one node reach each other without the network
};

class ExpertPlacement {
 public:
  // One rank that holds all experts.
  explicit ExpertPlacement(std::int64_t experts) : ExpertPlacement(experts, {{}}, 0) {}
  // `ranks` by place in the group, this rank at `place`. Throws Error unless they are a grid of
  // coordinates that divides the experts.
  ExpertPlacement(std::int64_t experts, std::vector<ExpertRank> ranks, int place);
  // The group MeshGroup::expert_layer of `rank`, `nodes` by its places.
  static ExpertPlacement of(const Mesh& mesh, int rank, std::int64_t experts,
                            std::span<const int> nodes);

  std::int64_t experts() const { return experts_; }
  int parts() const { return parts_; }
  int size() const { return static_cast<int>(ranks_.size()); }
  int place() const { return place_; }
  std::int64_t local_experts() const { return local_; }
  std::int64_t targets() const { return local_ * size(); }
  int place_of(std::int64_t target) const { return static_cast<int>(target / local_); }

  // Nodes are numbered from 0 by their first places.
  int nodes() const { return static_cast<int>(members_.size()); }
  int node_of(int place) const { return ranks_[static_cast<std::size_t>(place)].node; }
  int node() const { return node_of(place_); }
  // The places on a node, ascending.
  std::span<const int> members(int node) const { return members_[static_cast<std::size_t>(node)]; }

  // [experts, parts], as MapChoices takes them: the targets of each expert, their nodes, and their
  // rank among the targets on this rank's node (-1 elsewhere), which is by [targets].
  std::vector<std::int32_t> target_table() const;
  std::vector<std::int32_t> node_table() const;
  std::vector<std::int32_t> own_node_table() const;

 private:
  std::int64_t experts_, local_;
  int parts_, place_;
  std::vector<ExpertRank> ranks_;
  std::vector<std::vector<int>> members_;  // by node
};

}  // namespace orchard
