// How a parameter is split over ranks, and which part of it a rank holds. Both are pure functions
// of the parameter's description and the rank's place, so every rank can say what any other holds.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/core/shape.h"
#include "parallel/mesh.h"
#include "parallel/pipeline_stages.h"
#include "parallel/slice.h"

namespace orchard {

// Between their matrix products, tensor ranks repeat each other's work on whole activations, or
// share the rows (sequence parallelism: Korthikanti et al. 2022).
enum class SequenceParallel : std::uint8_t { no, yes };

// One of several ranks.
struct Place {
  int index = 0, size = 1;
  bool operator==(const Place&) const = default;
};

struct Sharding;

// Where a rank stands among those that share the parameters.
struct ShardingPlace {
  Place tensor;                 // dense parts
  Place expert, expert_tensor;  // experts
  SequenceParallel sequence_parallel = SequenceParallel::no;
  std::vector<LinkRange> links;  // of its pipeline stages; empty: no pipeline, all links are here

  bool has(int link) const {
    return links.empty() ||
           std::ranges::any_of(links, [&](const LinkRange& range) { return range.contains(link); });
  }
  // Whether a stage of this rank uses the parameter; other expert ranks may hold it.
  bool has(const Sharding& sharding) const;
  bool operator==(const ShardingPlace&) const = default;
};

ShardingPlace sharding_place(const Mesh& mesh, int rank, SequenceParallel sequence_parallel,
                             const PipelineStages& stages = {});

// What a rank has seen when it has added up the gradient of a parameter that others hold too.
enum class GradientOf : std::uint8_t {
  everything,   // the whole gradient, as the others have
  local_rows,   // under sequence parallelism its share of the rows, else everything
  local_heads,  // its share of the heads: the parameter serves several
};

struct Sharding {
  int tensor_dim = -1;  // dimension cut over tensor ranks (of an expert: over expert-tensor ranks);
                        // -1: every one of them holds all of it
  int expert = -1;      // index of the expert it belongs to; -1: not an expert's
  int experts = 0;      // of the layer, dealt to the expert ranks in equal ranges
  std::int64_t parts =
      0;  // the most parts that tensor_dim may be cut into (key-value heads): where
          // there are more ranks, neighbours hold the same; 0: no limit
  GradientOf gradient = GradientOf::everything;
  int link = 0;        // of the model's chain, that it belongs to; ParameterStore::declare sets it
  int tied_link = -1;  // a later link that uses it too; -1: none
};

enum class ParameterClass : std::uint8_t {
  dense_sharded,     // cut over tensor ranks; gradients are summed over the data group
  dense_replicated,  // on every tensor rank; likewise
  expert,            // gradients are summed over the expert-data group
};

// Where the two links that share a parameter are at different pipeline stages, each has a copy and
// that link's part of the gradient. The copies get the same sum, and so stay equal.
enum class TiedCopy : std::uint8_t { none, first, second };

// What decides how a gradient is reduced. Parameters that share it lie side by side in the flat
// buffers.
struct Reduction {
  ParameterClass parameter_class = ParameterClass::dense_sharded;
  int replicas = 1;      // consecutive tensor ranks that hold the same elements
  bool partial = false;  // each of them has a part of the gradient: it is summed over them first
  TiedCopy copy = TiedCopy::none;  // which one this is; its gradient is summed over both

  bool operator==(const Reduction&) const = default;
};

// What a rank has of one parameter.
struct Shard {
  Slice slice;  // count 0: nothing, other expert ranks or pipeline stages hold it
  Reduction reduction;
  int replica = 0;  // this rank among the replicas
  // Both links that share it are here, at stages of a pipeline: their gradients accumulate apart,
  // because schedules mix the passes of the two in different orders.
  bool tied_here = false;

  // The first replica counts where the elements of a stage count once.
  bool counts_in_stage() const { return replica == 0; }
  // Where elements of the whole model count once.
  bool counts() const { return counts_in_stage() && reduction.copy != TiedCopy::second; }

  bool operator==(const Shard&) const = default;
};

// Throws Error where the shape cannot be cut like this. The message does not name the parameter.
Shard shard_of(const Shape& shape, const Sharding& sharding, const ShardingPlace& place);

}  // namespace orchard
