#include "parallel/parameter_collectives.h"

#include <functional>
#include <span>

namespace orchard {
namespace {

// Every rank's slice side by side, in host memory.
std::vector<float> gather_slices(Stream& stream, Communicator& ranks, ConstTensor local) {
  const std::int64_t n = local.numel();
  const Shape all_shape{n * ranks.size()};
  Buffer all = stream.device().allocate(static_cast<std::size_t>(all_shape[0]) * sizeof(float));
  const Tensor gathered = all.tensor(DType::f32, all_shape);
  ranks.all_gather(stream, gathered, local.reshape({n})).wait(stream);
  std::vector<float> host(static_cast<std::size_t>(all_shape[0]));
  stream.copy(Tensor(host.data(), DType::f32, all_shape, DeviceKind::cpu), gathered);
  stream.synchronize();
  return host;
}

// The slices of ranks 0, 1, ... of a group become the whole. A parameter that some hold alike is
// written more than once, with the same elements.
std::vector<float> join(const ParameterSpec& spec, const std::vector<float>& slices, int ranks,
                        const std::function<ShardingPlace(int)>& place_of) {
  std::vector<float> whole(static_cast<std::size_t>(spec.shape.numel()));
  const std::size_t n = slices.size() / static_cast<std::size_t>(ranks);
  for (int rank = 0; rank < ranks; ++rank) {
    const Shard shard = shard_of(spec.shape, spec.sharding, place_of(rank));
    paste(spec.shape, shard.slice, std::span(slices).subspan(static_cast<std::size_t>(rank) * n, n),
          whole);
  }
  return whole;
}

std::vector<float> gather_expert(Stream& stream, const ParallelContext& ranks,
                                 const ParameterSpec& spec, ConstTensor local) {
  const ShardingPlace& place = ranks.place();
  const int owner = spec.sharding.expert / (spec.sharding.experts / place.expert.size);
  std::vector<float> whole(static_cast<std::size_t>(spec.shape.numel()));
  if (place.expert.index == owner) {
    whole = join(spec, gather_slices(stream, ranks[MeshGroup::expert_tensor], local),
                 place.expert_tensor.size, [&](int rank) {
                   ShardingPlace other = place;
                   other.expert_tensor.index = rank;
                   return other;
                 });
  }
  Buffer memory = stream.device().allocate(whole.size() * sizeof(float));
  const Tensor shared = memory.tensor(DType::f32, spec.shape);
  const Tensor host(whole.data(), DType::f32, spec.shape, DeviceKind::cpu);
  if (place.expert.index == owner) stream.copy(shared, host);
  ranks[MeshGroup::expert].broadcast(stream, shared, owner).wait(stream);
  stream.copy(host, shared);
  stream.synchronize();
  return whole;
}

}  // namespace

std::vector<float> gather_whole(Stream& stream, const ParallelContext& ranks,
                                const ParameterSpec& spec, ConstTensor local) {
  if (spec.sharding.expert >= 0) return gather_expert(stream, ranks, spec, local);
  const ShardingPlace& place = ranks.place();
  return join(spec, gather_slices(stream, ranks[MeshGroup::tensor], local), place.tensor.size,
              [&](int rank) {
                ShardingPlace other = place;
                other.tensor.index = rank;
                return other;
              });
}

}  // namespace orchard
