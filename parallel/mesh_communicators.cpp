#include "parallel/mesh_communicators.h"

namespace orchard {

std::string_view short_name_of(MeshGroup group) {
  constexpr std::string_view names[] = {"tp", "dp",  "pp",  "tp-pp",  "dp-tp",
                                        "ep", "etp", "edp", "ep-etp", "world"};
  static_assert(std::size(names) == std::size(mesh_groups));
  return names[static_cast<std::size_t>(group)];
}

MeshCommunicators::MeshCommunicators(Communicator& world, const Mesh& mesh)
    : world_(world), mesh_(mesh) {
  require(world.size() == mesh.world(), "a mesh of {} ranks on group {} of {}", mesh.world(),
          world.name(), world.size());
  for (const MeshGroup group : mesh_groups) {
    if (group == MeshGroup::world) continue;
    groups_[static_cast<std::size_t>(group)] =
        world.make_group(short_name_of(group), mesh.group(group, world.rank()));
  }
}

Communicator& MeshCommunicators::operator[](MeshGroup group) const {
  return group == MeshGroup::world ? world_ : *groups_[static_cast<std::size_t>(group)];
}

}  // namespace orchard
