// Who is where among the ranks of a job, and who communicates with whom.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "parallel/layout.h"

namespace orchard {

struct MeshCoordinates {
  int pipeline = 0;                                    // stage
  int tensor = 0, data = 0;                            // dense parts
  int expert = 0, expert_tensor = 0, expert_data = 0;  // experts

  bool operator==(const MeshCoordinates&) const = default;
  std::string to_string() const;  // "pp1 dp0 tp1 | ep2 etp0 edp0"
};

// Sets of ranks that communicate. The ranks of a group differ in the named coordinates alone, and
// are listed by rising rank: in a group of one axis, a rank's place is its coordinate.
enum class MeshGroup : std::uint8_t {
  tensor,         // tp: together hold a dense layer
  data,           // dp: hold the same dense parameters, see other samples
  pipeline,       // pp: the stages of one replica
  model,          // tp x pp: together hold the dense parts of one replica
  stage,          // dp x tp, which is edp x ep x etp: all ranks of a pipeline stage
  expert,         // ep: exchange tokens
  expert_tensor,  // etp: together hold an expert
  expert_data,    // edp: hold the same experts
  expert_layer,   // ep x etp: together hold the experts of a layer
  world,
};

inline constexpr MeshGroup mesh_groups[] = {
    MeshGroup::tensor,       MeshGroup::data,   MeshGroup::pipeline,      MeshGroup::model,
    MeshGroup::stage,        MeshGroup::expert, MeshGroup::expert_tensor, MeshGroup::expert_data,
    MeshGroup::expert_layer, MeshGroup::world};

std::string_view name_of(MeshGroup group);

class Mesh {
 public:
  // Throws Error where the layout is impossible, as require_possible does.
  Mesh(int world, const Layout& layout);

  int world() const { return world_; }
  const Layout& layout() const { return layout_; }
  int data() const { return layout_.data(world_); }
  int expert_data() const { return layout_.expert_data(world_); }

  MeshCoordinates coordinates(int rank) const;
  // For logs: "rank 5 (pp1 dp0 tp1 | ep2 etp0 edp0)".
  std::string name(int rank) const;

  // The group of that kind that `rank` is in.
  std::vector<int> group(MeshGroup kind, int rank) const;
  // All groups of the kind, by their first ranks: each rank is in one of them.
  std::vector<std::vector<int>> groups(MeshGroup kind) const;

  // The ranks that add up the gradient of the tied embedding with `rank`: those of its pipeline
  // group at the stages of lookup and head, which a schedule may put on the same rank. Empty where
  // `rank` is at neither.
  std::vector<int> embedding_group(int rank, int lookup, int head) const;

 private:
  int world_;
  Layout layout_;
};

}  // namespace orchard
