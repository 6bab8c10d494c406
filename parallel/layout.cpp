#include "parallel/layout.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <tuple>
#include <vector>

#include "kernels/core/error.h"

namespace orchard {
namespace {

constexpr std::string_view axis_names[mesh_axes] = {"tp", "ep", "dp", "pp"};

// Ranks from one pipeline stage to the next, where the axes have these sizes.
int pipeline_stride(const RankOrder& order, const std::array<int, mesh_axes>& sizes) {
  int stride = 1;
  for (const MeshAxis axis : order) {
    if (axis == MeshAxis::pipeline) break;
    stride *= sizes[static_cast<std::size_t>(axis)];
  }
  return stride;
}

// Something that is cut into equal parts, `divisor` of them.
struct Division {
  std::string_view what;
  std::int64_t total;
  std::string_view by;
  std::int64_t divisor;
};

std::optional<std::string> broken_division(std::span<const Division> divisions) {
  for (const Division& d : divisions) {
    if (d.total % d.divisor == 0) continue;
    return fmt::format("{} {}: must divide {}, of which there are {}", d.by, d.divisor, d.what,
                       d.total);
  }
  return {};
}

std::optional<std::string> broken_world_rule(int world, const Layout& layout) {
  const std::pair<std::string_view, int> sizes[] = {{"tp", layout.tensor},
                                                    {"pp", layout.pipeline},
                                                    {"ep", layout.expert},
                                                    {"etp", layout.expert_tensor}};
  for (const auto& [name, size] : sizes) {
    if (size < 1) return fmt::format("{} {}: must be at least 1", name, size);
    if (size > world) return fmt::format("{} {}: there are only {} ranks", name, size, world);
  }
  if (layout.tensor_chunks < 1)
    return fmt::format("tp-chunks {}: must be at least 1", layout.tensor_chunks);
  if (layout.tensor_chunks > 1 && layout.tensor == 1)
    return fmt::format("tp-chunks {}: with tp 1 no rows travel that could be cut",
                       layout.tensor_chunks);
  const std::int64_t dense = std::int64_t{layout.pipeline} * layout.tensor;
  const std::int64_t experts = std::int64_t{layout.pipeline} * layout.expert * layout.expert_tensor;
  if (world % dense != 0)
    return fmt::format("pp {} x tp {} = {}: must divide the {} ranks", layout.pipeline,
                       layout.tensor, dense, world);
  if (world % experts != 0)
    return fmt::format("pp {} x ep {} x etp {} = {}: must divide the {} ranks", layout.pipeline,
                       layout.expert, layout.expert_tensor, experts, world);
  const int dense_stride =
      pipeline_stride(layout.order, {layout.tensor, 1, layout.data(world), layout.pipeline});
  const int expert_stride = pipeline_stride(
      layout.order,
      {layout.expert_tensor, layout.expert, layout.expert_data(world), layout.pipeline});
  if (layout.pipeline > 1 && dense_stride != expert_stride)
    return fmt::format(
        "order {}: the next pipeline stage is {} ranks away for the dense parts and {} for the "
        "experts; with pp at either end of the order it is the same rank",
        to_string(layout.order), dense_stride, expert_stride);
  return {};
}

std::optional<std::string> broken_batch_rule(int world, const Layout& l, const LayoutFacts& facts) {
  for (const LayoutFacts::Batch& batch : facts.batches) {
    if (batch.sequences % l.data(world) != 0)
      return fmt::format("dp {}, which is what {} ranks leave: must divide the global batch of {}",
                         l.data(world), world, batch.sequences);
  }
  return {};
}

// Of the smallest micro-batch; 0 where none is known.
std::int64_t fewest_rows(int replicas, const LayoutFacts& facts) {
  std::int64_t fewest = 0;
  for (const LayoutFacts::Batch& batch : facts.batches) {
    const std::int64_t rows =
        batch.rows * micro_batch_of(batch.sequences, batch.micro_batch, replicas);
    if (rows > 0) fewest = fewest > 0 ? std::min(fewest, rows) : rows;
  }
  return fewest;
}

// Each chunk needs a row of each tensor rank.
std::int64_t most_tensor_chunks(int tensor, std::int64_t rows) {
  if (tensor == 1) return 1;
  return rows > 0 ? (rows + tensor - 1) / tensor : std::numeric_limits<std::int64_t>::max();
}

// Of a layout that breaks no other rule.
std::optional<std::string> broken_chunk_rule(int world, const Layout& l, const LayoutFacts& facts) {
  const std::int64_t rows = fewest_rows(l.data(world), facts);
  const std::int64_t most = most_tensor_chunks(l.tensor, rows);
  if (l.tensor_chunks <= most) return {};
  return fmt::format(
      "tp-chunks {}: must be at most {}, a tensor rank's share of the {} rows of a micro-batch",
      l.tensor_chunks, most, rows);
}

std::optional<std::string> broken_model_rule(int world, const Layout& l, const LayoutFacts& facts) {
  if (l.expert * l.expert_tensor > 1 && facts.experts == 0 && facts.heads > 0)
    return fmt::format("ep {}, etp {}: the model has no experts", l.expert, l.expert_tensor);
  const Division divisions[] = {
      {"the decoder's heads", facts.heads, "tp", l.tensor},
      {"the decoder's ffn columns", facts.ffn, "tp", l.tensor},
      {"the tokens of the vocabulary", facts.vocabulary, "tp", l.tensor},
      {"the vision tower's heads", facts.vision_heads, "tp", l.tensor},
      {"the vision tower's mlp columns", facts.vision_mlp, "tp", l.tensor},
      {"the experts", facts.experts, "ep", l.expert},
      {"the ffn columns of an expert", facts.expert_ffn, "etp", l.expert_tensor},
  };
  if (auto broken = broken_division(divisions)) return broken;
  // A key-value head that several ranks need is copied to each of them.
  if (facts.kv_heads % l.tensor != 0 && l.tensor % facts.kv_heads != 0)
    return fmt::format("tp {}: must divide the {} kv heads, or be a multiple of them", l.tensor,
                       facts.kv_heads);
  const std::int64_t stages = l.pipeline > 1 ? std::int64_t{l.pipeline} * facts.chunks : 1;
  if (facts.blocks > 0 && stages > facts.blocks)
    return fmt::format(
        "pp {} x {} chunks = {} stages: the model has {} blocks, and each stage "
        "needs one",
        l.pipeline, facts.chunks, stages, facts.blocks);
  if (l.pipeline > 1 && facts.named_stages > 0 && stages != facts.named_stages)
    return fmt::format("pp {} x {} chunks: stage_blocks are of {} stages, and the pipeline has {}",
                       l.pipeline, facts.chunks, facts.named_stages, stages);
  return broken_batch_rule(world, l, facts);
}

// The most chunks a rank, fewer than asked for, with which the layout is possible; 0 where there are
// none.
int possible_pipeline_chunks(int world, const Layout& layout, LayoutFacts facts) {
  while (--facts.chunks >= facts.fewest_chunks) {
    if (!broken_rule(world, layout, facts)) return facts.chunks;
  }
  return 0;
}

// The layout with as many tensor chunks, up to those it has, as are possible; nothing where it
// breaks another rule.
std::optional<Layout> with_possible_chunks(int world, Layout layout, const LayoutFacts& facts) {
  const int wanted = std::max(layout.tensor_chunks, 1);
  layout.tensor_chunks = 1;
  if (broken_world_rule(world, layout) || broken_model_rule(world, layout, facts)) return {};
  const std::int64_t most =
      most_tensor_chunks(layout.tensor, fewest_rows(layout.data(world), facts));
  layout.tensor_chunks = static_cast<int>(std::min<std::int64_t>(wanted, most));
  return layout;
}

// How far apart two layouts are: the factors between their sizes, then how many sizes changed.
std::tuple<double, int> distance(const Layout& a, const Layout& b) {
  double factors = 0;
  int changes = 0;
  const auto add = [&](int x, int y) {
    factors += std::abs(std::log2(static_cast<double>(std::max(x, 1)) / y));
    changes += x != y;
  };
  add(a.tensor, b.tensor);
  add(a.pipeline, b.pipeline);
  add(a.expert, b.expert);
  add(a.expert_tensor, b.expert_tensor);
  // As far as a factor of two: an order is rarely asked for without need.
  if (a.order != b.order) factors += 1;
  // They give way to everything: they change how long a step takes, not what it needs.
  if (a.tensor_chunks != b.tensor_chunks) factors += 1e-3;
  return {factors, changes};
}

}  // namespace

RankOrder parse_rank_order(std::string_view text) {
  // Of the few orders there are, the one that is written like this.
  RankOrder order = default_rank_order;
  std::sort(order.begin(), order.end());
  do {
    if (to_string(order) == text) return order;
  } while (std::next_permutation(order.begin(), order.end()));
  fail("rank order {}: must be tp, ep, dp and pp, each once, as in tp-ep-dp-pp", text);
}

std::string to_string(const RankOrder& order) {
  std::string text;
  for (const MeshAxis axis : order) {
    if (!text.empty()) text += '-';
    text += axis_names[static_cast<std::size_t>(axis)];
  }
  return text;
}

std::string Layout::to_string() const {
  const std::string chunks = tensor_chunks > 1 ? fmt::format(", tp-chunks {}", tensor_chunks) : "";
  return fmt::format("tp {}, pp {}, ep {}, etp {}, order {}{}", tensor, pipeline, expert,
                     expert_tensor, orchard::to_string(order), chunks);
}

std::int64_t micro_batch_of(std::int64_t sequences, std::int64_t limit, int replicas) {
  require(sequences % replicas == 0, "{} sequences of a step do not divide among {} replicas",
          sequences, replicas);
  std::int64_t micro_batch = std::max<std::int64_t>(limit, 1);
  while (sequences / replicas % micro_batch != 0) --micro_batch;
  return micro_batch;
}

std::optional<std::string> broken_rule(int world, const Layout& layout, const LayoutFacts& facts) {
  require(world >= 1, "a world of {} ranks", world);
  if (auto broken = broken_world_rule(world, layout)) return broken;
  if (auto broken = broken_model_rule(world, layout, facts)) return broken;
  return broken_chunk_rule(world, layout, facts);
}

std::optional<Layout> nearest_layout(int world, const Layout& layout, const LayoutFacts& facts) {
  std::vector<int> sizes;
  for (int size = 1; size <= world; ++size) {
    if (world % size == 0) sizes.push_back(size);
  }
  std::optional<Layout> nearest;
  for (const RankOrder& order : {layout.order, default_rank_order}) {
    for (const int tensor : sizes) {
      for (const int pipeline : sizes) {
        for (const int expert : sizes) {
          for (const int expert_tensor : sizes) {
            const Layout sizes_of{tensor,        pipeline, expert,
                                  expert_tensor, order,    layout.tensor_chunks};
            const std::optional<Layout> other = with_possible_chunks(world, sizes_of, facts);
            if (!other) continue;
            if (!nearest || distance(layout, *other) < distance(layout, *nearest)) nearest = other;
          }
        }
      }
    }
  }
  return nearest;
}

std::string nearest_layout_text(int world, const Layout& layout, const LayoutFacts& facts) {
  const std::optional<Layout> nearest = nearest_layout(world, layout, facts);
  if (!nearest) return fmt::format("no layout of {} ranks is possible", world);
  return fmt::format("the nearest possible layout of {} ranks is {} (dp {})", world,
                     nearest->to_string(), nearest->data(world));
}

void require_possible(int world, const Layout& layout, const LayoutFacts& facts) {
  const std::optional<std::string> broken = broken_rule(world, layout, facts);
  if (!broken) return;
  if (const int chunks = possible_pipeline_chunks(world, layout, facts))
    fail("{}; with {} pipeline chunks a rank the layout is possible", *broken, chunks);
  fail("{}; {}", *broken, nearest_layout_text(world, layout, facts));
}

}  // namespace orchard
