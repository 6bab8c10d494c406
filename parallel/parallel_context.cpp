#include "parallel/parallel_context.h"

#include <numeric>
#include <vector>

namespace orchard {

ParallelContext::ParallelContext(Communicator& world, const Layout& layout,
                                 SequenceParallel sequence_parallel)
    : groups_(world, Mesh(world.size(), layout)),
      coordinates_(groups_.coordinates()),
      place_(sharding_place(mesh(), rank(), sequence_parallel)) {
  Communicator& tensor = groups_[MeshGroup::tensor];
  for (int count = 1; count < tensor.size(); ++count) {
    if (tensor.size() % count != 0) continue;
    std::vector<int> places(static_cast<std::size_t>(count));
    std::iota(places.begin(), places.end(), tensor.rank() / count * count);
    replicas_[count] = tensor.make_group(fmt::format("tp-replicas-{}", count), places);
  }
}

Communicator& ParallelContext::replicas(int count) const {
  if (count == place_.tensor.size) return groups_[MeshGroup::tensor];
  const auto found = replicas_.find(count);
  require(found != replicas_.end(), "{} tensor ranks have no groups of {}", place_.tensor.size,
          count);
  return *found->second;
}

}  // namespace orchard
