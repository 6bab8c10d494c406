// What a rank knows of the layout it works in: its place, and the groups it communicates with.
#pragma once

#include <map>
#include <memory>

#include "parallel/mesh_communicators.h"
#include "parallel/sharding.h"

namespace orchard {

class ParallelContext {
 public:
  // All ranks of `world` call it together; `world` must outlive the context. A layout with
  // pipelines needs as many ranks' stages.
  ParallelContext(Communicator& world, const Layout& layout,
                  SequenceParallel sequence_parallel = SequenceParallel::yes,
                  const PipelineStages& stages = {});

  const Mesh& mesh() const { return groups_.mesh(); }
  int rank() const { return groups_.rank(); }  // in the mesh
  const MeshCoordinates& coordinates() const { return coordinates_; }
  const ShardingPlace& place() const { return place_; }
  const PipelineStages& stages() const { return stages_; }

  Communicator& operator[](MeshGroup group) const { return groups_[group]; }
  // The consecutive tensor ranks that hold what this rank holds of a parameter with so many
  // replicas (see Reduction).
  Communicator& replicas(int count) const;
  // The ranks of MeshGroup::pipeline once more: gradients may overtake activations. Only with
  // pipelines.
  Communicator& pipeline_gradients() const { return *pipeline_gradients_; }

 private:
  MeshCommunicators groups_;
  PipelineStages stages_;
  MeshCoordinates coordinates_;
  ShardingPlace place_;
  std::map<int, std::unique_ptr<Communicator>> replicas_;  // by their number, tp apart
  std::unique_ptr<Communicator> pipeline_gradients_;
};

}  // namespace orchard
