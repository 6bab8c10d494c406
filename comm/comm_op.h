// The kinds of operations that groups perform.
#pragma once

#include <cstdint>
#include <string_view>

namespace orchard {

enum class CommOp : std::uint8_t {
  all_reduce,
  reduce_scatter,
  all_gather,
  broadcast,
  all_to_all,
  exchange,
  barrier,
  host,   // values of the host: sums, maxima, gathered counts
  graph,  // a replay of several that were recorded together
};
inline constexpr std::size_t comm_ops = 9;

constexpr std::string_view name_of(CommOp op) {
  constexpr std::string_view names[comm_ops] = {"all-reduce", "reduce-scatter", "all-gather",
                                                "broadcast",  "all-to-all",     "exchange",
                                                "barrier",    "host values",    "graph"};
  return names[static_cast<std::size_t>(op)];
}

}  // namespace orchard
