// Which way the rows of a layer's tokens take to the experts and back: pure functions of the
// placement and of how many rows go where, which all ranks know alike. So every rank finds the shapes
// of all its messages without another one.
//
// A row belongs to one choice of one token. It lies in three orders:
//   owner's   (target, token)                      at the rank that has the token
//   experts'  (local expert, source rank, token), each expert's rows padded with zeros
//   between   blocks, in the order in which they came
// where a block is what one rank sends to one target, in token order.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "parallel/expert_placement.h"

namespace orchard {

// How many rows go from where to where.
class ExpertTraffic {
 public:
  // `offsets` [ranks, stride]: of each rank the first rows of its blocks in the owner's order,
  // [targets + 1], followed, where `nodes` is not 0, by those of the tokens it has for each node,
  // [nodes + 1].
  ExpertTraffic(std::int64_t ranks, std::int64_t targets, std::int64_t nodes,
                std::span<const std::int32_t> offsets, std::int64_t stride);
  // From every rank `rows` rows to every target. Nothing is said of tokens by node.
  static ExpertTraffic even(const ExpertPlacement&, std::int64_t rows);

  std::int64_t rows(int source, std::int64_t target) const {
    return between(offsets_, source * (targets_ + 1) + target);
  }
  // Tokens that have a choice on the node, each counted once.
  std::int64_t tokens(int source, int node) const {
    return between(node_offsets_, source * (nodes_ + 1) + node);
  }
  // Of all targets, or nodes.
  std::int64_t rows_of(int source) const;
  std::int64_t tokens_of(int source) const;

 private:
  static std::int64_t between(const std::vector<std::int32_t>& offsets, std::int64_t i) {
    const auto at = static_cast<std::size_t>(i);
    return offsets[at + 1] - offsets[at];
  }

  std::int64_t targets_, nodes_;
  std::vector<std::int32_t> offsets_, node_offsets_;
};

// As CopyRuns reads them; from -1 is zeros.
struct RowRun {
  std::int32_t from = 0, to = 0, count = 0;
  bool operator==(const RowRun&) const = default;
};

enum class HopGroup : std::uint8_t {
  layer,  // all ranks that hold the layer's experts
  node,   // those of them on this rank's node
};

// One all-to-all.
struct Hop {
  HopGroup group = HopGroup::layer;
  std::vector<RowRun> runs;                           // from the buffer before to the one sent;
                                                      // empty: its first rows are sent
  std::vector<std::int64_t> send_rows, receive_rows;  // by place in the hop's group
  std::int64_t sent = 0, received = 0;                // rows in all
};

// Hops, and the order in which what they brought belongs. Empty: its first rows lie there already.
struct Journey {
  std::vector<Hop> hops;
  std::vector<RowRun> arrival;
};

enum class ExpertWay : std::uint8_t {
  direct,  // every rank sends to every rank
  // A rank gives what another node wants to the rank of its own node that talks to it. One message
  // goes from node to node, and is dealt out there. Bytes cross the network in few, large messages.
  by_node,
};

// First rows of each local expert, and behind the last one: multiples of row_multiple.
std::vector<std::int32_t> expert_row_offsets(const ExpertPlacement&, const ExpertTraffic&);

// A row for each choice, from the owner's order to the experts', and the other way.
Journey to_experts(const ExpertPlacement&, const ExpertTraffic&, ExpertWay);
Journey to_owners(const ExpertPlacement&, const ExpertTraffic&, ExpertWay);

// Each token once to every node that wants it. First two hops, by node, then by source; the rank
// where they end makes rows of the tokens, in the order (target, token) in which `last` sends them.
struct SharedJourney {
  Journey to_node;  // from the order (node, token)
  Hop last;
  std::vector<RowRun> arrival;  // to the experts' order
};
SharedJourney to_experts_once_a_node(const ExpertPlacement&, const ExpertTraffic&);

// Rows that this rank sends to ranks of other nodes in hops that are not confined to its own.
std::int64_t rows_across_nodes(const ExpertPlacement&, const Hop&);

}  // namespace orchard
