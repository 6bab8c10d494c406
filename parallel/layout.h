// How the ranks of a job share the work, and which layouts are possible.
//
// The world is factored twice, independently:
//   dense parts   world = pp x dp  x tp
//   experts       world = pp x edp x ep x etp
// dp and edp are what is left. Both give a rank the same pipeline stage.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace orchard {

// Where both factorisations have a size. Context parallelism would be one more, of size 1 for the
// experts.
enum class MeshAxis : std::uint8_t { tensor, expert, data, pipeline };
inline constexpr int mesh_axes = 4;

// From the axis whose neighbours are next to each other to the slowest. Ranks are placed on nodes in
// order, so the axis with the most traffic comes first.
using RankOrder = std::array<MeshAxis, mesh_axes>;
inline constexpr RankOrder default_rank_order = {MeshAxis::tensor, MeshAxis::expert, MeshAxis::data,
                                                 MeshAxis::pipeline};

// "tp-ep-dp-pp" and back. Throws Error for anything but the four names, each once.
RankOrder parse_rank_order(std::string_view text);
std::string to_string(const RankOrder& order);

struct Layout {
  int tensor = 1;         // tp: columns, rows and heads of the dense parts
  int pipeline = 1;       // pp: stages
  int expert = 1;         // ep: the experts of a layer
  int expert_tensor = 1;  // etp: columns and rows of each expert
  RankOrder order = default_rank_order;
  // Parts of the rows in which tensor ranks gather them and add them up, so that one part travels
  // while the next is computed.
  int tensor_chunks = 1;

  bool operator==(const Layout&) const = default;
  int data(int world) const { return world / (pipeline * tensor); }
  int expert_data(int world) const { return world / (pipeline * expert * expert_tensor); }
  // "tp 2, pp 2, ep 4, etp 1, order tp-ep-dp-pp", and "tp-chunks 2" where there are several.
  std::string to_string() const;
};

// What a model and its recipe demand of a layout. What is 0 is not there and demands nothing.
struct LayoutFacts {
  std::int64_t heads = 0, kv_heads = 0, ffn = 0, vocabulary = 0;  // of the decoder
  std::int64_t vision_heads = 0, vision_mlp = 0;
  std::int64_t experts = 0, expert_ffn = 0;
  std::int64_t blocks = 0;  // of the pipeline's chain: tower, connector, decoder layers, head
  int chunks = 1;           // of the pipeline schedule, a rank
  int fewest_chunks = 1;    // that the schedule could do with
  int named_stages = 0;     // whose blocks the recipe names; 0: they are balanced
  // Of each stage of the recipe.
  struct Batch {
    std::int64_t sequences = 0;    // of a step
    std::int64_t micro_batch = 1;  // the most of them in one forward pass
    std::int64_t rows = 0;         // of a sequence
  };
  std::vector<Batch> batches{};
};

// Sequences of one forward pass: the most, up to `limit`, that make a replica's share of a step's
// `sequences` a whole number of passes. Throws Error where the sequences do not divide among the
// replicas.
std::int64_t micro_batch_of(std::int64_t sequences, std::int64_t limit, int replicas);

// The first rule that the layout breaks, with the numbers that break it; nothing where it is
// possible.
std::optional<std::string> broken_rule(int world, const Layout& layout,
                                       const LayoutFacts& facts = {});

// The possible layout whose sizes differ by the smallest factors; nothing where there is none.
std::optional<Layout> nearest_layout(int world, const Layout& layout,
                                     const LayoutFacts& facts = {});

// "the nearest possible layout of 8 ranks is ...", or that there is none.
std::string nearest_layout_text(int world, const Layout& layout, const LayoutFacts& facts = {});

// Throws Error naming the broken rule and the nearest possible layout; where only the pipeline's
// chunks are too many, the number of them that fits.
void require_possible(int world, const Layout& layout, const LayoutFacts& facts = {});

}  // namespace orchard
