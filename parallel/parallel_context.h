// What a rank knows of the layout it works in: its place, and the groups it communicates with.
#pragma once

#include <map>
#include <memory>

#include "parallel/mesh_communicators.h"
#include "parallel/sharding.h"

namespace orchard {

class ParallelContext {
 public:
  // All ranks of `world` call it together; `world` must outlive the context.
  ParallelContext(Communicator& world, const Layout& layout,
                  SequenceParallel sequence_parallel = SequenceParallel::yes);

  const Mesh& mesh() const { return groups_.mesh(); }
  int rank() const { return groups_.rank(); }  // in the mesh
  const MeshCoordinates& coordinates() const { return coordinates_; }
  const ShardingPlace& place() const { return place_; }

  Communicator& operator[](MeshGroup group) const { return groups_[group]; }
  // The consecutive tensor ranks that hold what this rank holds of a parameter with so many
  // replicas (see Reduction).
  Communicator& replicas(int count) const;

 private:
  MeshCommunicators groups_;
  MeshCoordinates coordinates_;
  ShardingPlace place_;
  std::map<int, std::unique_ptr<Communicator>> replicas_;  // by their number, tp apart
};

}  // namespace orchard
