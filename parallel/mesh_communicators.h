// The communicators of a mesh: for each kind of group, the one that this rank is in.
#pragma once

#include <array>
#include <memory>

#include "comm/communicator.h"
#include "parallel/mesh.h"

namespace orchard {

// As logs and statistics call the group: "tp", "dp", "pp", "tp-pp", "dp-tp", "ep", "etp", "edp",
// "ep-etp", "world".
std::string_view short_name_of(MeshGroup group);

class MeshCommunicators {
 public:
  // All ranks of `world` call it together; `world` must outlive the object, and be as large as the
  // mesh.
  MeshCommunicators(Communicator& world, const Mesh& mesh);

  const Mesh& mesh() const { return mesh_; }
  int rank() const { return world_.rank(); }
  MeshCoordinates coordinates() const { return mesh_.coordinates(rank()); }

  // Groups that talk at the same time never wait for each other: each has messages of its own, even
  // where two have the same ranks.
  Communicator& operator[](MeshGroup group) const;

 private:
  Communicator& world_;
  Mesh mesh_;
  std::array<std::unique_ptr<Communicator>, std::size(mesh_groups)> groups_;
};

}  // namespace orchard
