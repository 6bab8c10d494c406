#include "parallel/sharding.h"

#include <algorithm>

#include "kernels/core/error.h"

namespace orchard {

bool ShardingPlace::has(const Sharding& sharding) const {
  return has(sharding.link) || (sharding.tied_link >= 0 && has(sharding.tied_link));
}

namespace {

void place_in_pipeline(Shard& shard, const Sharding& sharding, const ShardingPlace& place) {
  if (!place.has(sharding)) shard.slice.begin = shard.slice.count = 0;
  if (sharding.tied_link < 0 || place.links.empty()) return;
  const bool first = place.has(sharding.link), second = place.has(sharding.tied_link);
  shard.tied_here = first && second;
  if (first != second) shard.reduction.copy = first ? TiedCopy::first : TiedCopy::second;
}

}  // namespace

ShardingPlace sharding_place(const Mesh& mesh, int rank, SequenceParallel sequence_parallel,
                             const PipelineStages& stages) {
  const MeshCoordinates c = mesh.coordinates(rank);
  const Layout& layout = mesh.layout();
  return {.tensor = {c.tensor, layout.tensor},
          .expert = {c.expert, layout.expert},
          .expert_tensor = {c.expert_tensor, layout.expert_tensor},
          .sequence_parallel = sequence_parallel,
          .links = stages.links_of_rank(c.pipeline)};
}

Shard shard_of(const Shape& shape, const Sharding& sharding, const ShardingPlace& place) {
  const bool of_expert = sharding.expert >= 0;
  const Place cut = of_expert ? place.expert_tensor : place.tensor;
  const int dim = std::max(sharding.tensor_dim, 0);
  const auto shards =
      static_cast<int>(sharding.tensor_dim < 0 ? 1
                       : sharding.parts > 0    ? std::min<std::int64_t>(cut.size, sharding.parts)
                                               : cut.size);
  require(shape[dim] % shards == 0 && cut.size % shards == 0,
          "dimension {} of {} cannot be cut into {} equal parts for {} ranks", dim, shape, shards,
          cut.size);
  const int replicas = cut.size / shards;
  const std::int64_t count = shape[dim] / shards;
  Shard shard{.slice = {.dim = dim, .begin = cut.index / replicas * count, .count = count},
              .reduction = {.replicas = replicas},
              .replica = cut.index % replicas};
  shard.reduction.partial = replicas > 1 && (sharding.gradient == GradientOf::local_heads ||
                                             (sharding.gradient == GradientOf::local_rows &&
                                              place.sequence_parallel == SequenceParallel::yes));
  place_in_pipeline(shard, sharding, place);
  if (!of_expert) {
    shard.reduction.parameter_class =
        sharding.tensor_dim < 0 ? ParameterClass::dense_replicated : ParameterClass::dense_sharded;
    return shard;
  }
  shard.reduction.parameter_class = ParameterClass::expert;
  require(sharding.expert < sharding.experts && sharding.experts % place.expert.size == 0,
          "expert {} of {} cannot be dealt to {} ranks", sharding.expert, sharding.experts,
          place.expert.size);
  if (sharding.expert / (sharding.experts / place.expert.size) != place.expert.index)
    shard.slice = {.dim = dim, .begin = 0, .count = 0};
  return shard;
}

}  // namespace orchard
