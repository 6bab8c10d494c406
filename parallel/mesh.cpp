#include "parallel/mesh.h"

#include <algorithm>

#include "kernels/core/error.h"

namespace orchard {
namespace {

using Digits = std::array<int, mesh_axes>;  // by MeshAxis

// A rank as a number with one digit an axis, the first of `order` being the lowest.
Digits digits_of(int rank, const RankOrder& order, const Digits& sizes) {
  Digits digits{};
  for (const MeshAxis axis : order) {
    const auto i = static_cast<std::size_t>(axis);
    digits[i] = rank % sizes[i];
    rank /= sizes[i];
  }
  return digits;
}

// The coordinates that all ranks of a group share, and zeros for those in which they differ.
MeshCoordinates shared_by(MeshGroup group, MeshCoordinates c) {
  const MeshCoordinates dense{.pipeline = c.pipeline, .tensor = c.tensor, .data = c.data};
  const MeshCoordinates experts{.pipeline = c.pipeline,
                                .expert = c.expert,
                                .expert_tensor = c.expert_tensor,
                                .expert_data = c.expert_data};
  MeshCoordinates shared;
  switch (group) {
    case MeshGroup::tensor:
      shared = dense;
      shared.tensor = 0;
      break;
    case MeshGroup::data:
      shared = dense;
      shared.data = 0;
      break;
    case MeshGroup::pipeline:
      shared = dense;
      shared.pipeline = 0;
      break;
    case MeshGroup::model:
      shared.data = c.data;
      break;
    case MeshGroup::stage:
      shared.pipeline = c.pipeline;
      break;
    case MeshGroup::expert:
      shared = experts;
      shared.expert = 0;
      break;
    case MeshGroup::expert_tensor:
      shared = experts;
      shared.expert_tensor = 0;
      break;
    case MeshGroup::expert_data:
      shared = experts;
      shared.expert_data = 0;
      break;
    case MeshGroup::expert_layer:
      shared.pipeline = c.pipeline;
      shared.expert_data = c.expert_data;
      break;
    case MeshGroup::world:
      break;
  }
  return shared;
}

}  // namespace

std::string MeshCoordinates::to_string() const {
  return fmt::format("pp{} dp{} tp{} | ep{} etp{} edp{}", pipeline, data, tensor, expert,
                     expert_tensor, expert_data);
}

std::string_view name_of(MeshGroup group) {
  constexpr std::string_view names[] = {"tensor",       "data",   "pipeline",      "model",
                                        "stage",        "expert", "expert-tensor", "expert-data",
                                        "expert-layer", "world"};
  return names[static_cast<std::size_t>(group)];
}

Mesh::Mesh(int world, const Layout& layout) : world_(world), layout_(layout) {
  require_possible(world, layout);
}

MeshCoordinates Mesh::coordinates(int rank) const {
  require(rank >= 0 && rank < world_, "rank {} of {}: there is none", rank, world_);
  const auto at = [](const Digits& digits, MeshAxis axis) {
    return digits[static_cast<std::size_t>(axis)];
  };
  const Digits dense =
      digits_of(rank, layout_.order, {layout_.tensor, 1, data(), layout_.pipeline});
  const Digits experts =
      digits_of(rank, layout_.order,
                {layout_.expert_tensor, layout_.expert, expert_data(), layout_.pipeline});
  return {.pipeline = at(dense, MeshAxis::pipeline),
          .tensor = at(dense, MeshAxis::tensor),
          .data = at(dense, MeshAxis::data),
          .expert = at(experts, MeshAxis::expert),
          .expert_tensor = at(experts, MeshAxis::tensor),
          .expert_data = at(experts, MeshAxis::data)};
}

std::string Mesh::name(int rank) const {
  return fmt::format("rank {} ({})", rank, coordinates(rank).to_string());
}

std::vector<int> Mesh::group(MeshGroup kind, int rank) const {
  const MeshCoordinates shared = shared_by(kind, coordinates(rank));
  std::vector<int> ranks;
  for (int other = 0; other < world_; ++other) {
    if (shared_by(kind, coordinates(other)) == shared) ranks.push_back(other);
  }
  return ranks;
}

std::vector<std::vector<int>> Mesh::groups(MeshGroup kind) const {
  std::vector<std::vector<int>> all;
  for (int rank = 0; rank < world_; ++rank) {
    std::vector<int> ranks = group(kind, rank);
    if (ranks.front() == rank) all.push_back(std::move(ranks));
  }
  return all;
}

std::vector<int> Mesh::embedding_group(int rank, int lookup, int head) const {
  std::vector<int> ranks;
  for (const int other : group(MeshGroup::pipeline, rank)) {
    const int stage = coordinates(other).pipeline;
    if (stage == lookup || stage == head) ranks.push_back(other);
  }
  if (std::find(ranks.begin(), ranks.end(), rank) == ranks.end()) ranks.clear();
  return ranks;
}

}  // namespace orchard
