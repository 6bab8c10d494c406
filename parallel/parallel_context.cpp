#include "parallel/parallel_context.h"

#include <numeric>
#include <vector>

namespace orchard {

ParallelContext::ParallelContext(Communicator& world, const Layout& layout,
                                 SequenceParallel sequence_parallel, const PipelineStages& stages)
    : groups_(world, Mesh(world.size(), layout)),
      stages_(stages),
      coordinates_(groups_.coordinates()),
      place_(sharding_place(mesh(), rank(), sequence_parallel, stages)) {
  require(stages.ranks() == layout.pipeline, "pp {} with the stages of {} ranks", layout.pipeline,
          stages.ranks());
  Communicator& tensor = groups_[MeshGroup::tensor];
  for (int count = 1; count < tensor.size(); ++count) {
    if (tensor.size() % count != 0) continue;
    std::vector<int> places(static_cast<std::size_t>(count));
    std::iota(places.begin(), places.end(), tensor.rank() / count * count);
    replicas_[count] = tensor.make_group(fmt::format("tp-replicas-{}", count), places);
  }
  Communicator& pipeline = groups_[MeshGroup::pipeline];
  if (pipeline.size() == 1) return;
  std::vector<int> places(static_cast<std::size_t>(pipeline.size()));
  std::iota(places.begin(), places.end(), 0);
  pipeline_gradients_ = pipeline.make_group("pp-gradients", places);
}

Communicator& ParallelContext::replicas(int count) const {
  if (count == place_.tensor.size) return groups_[MeshGroup::tensor];
  const auto found = replicas_.find(count);
  require(found != replicas_.end(), "{} tensor ranks have no groups of {}", place_.tensor.size,
          count);
  return *found->second;
}

}  // namespace orchard
