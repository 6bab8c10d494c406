// Every byte that every group moves in a whole training step follows from the layout, the shapes of
// the micro-batches and the experts that their rows choose; and no other group moves any. Under mpirun,
// with four and eight ranks.
#include <gtest/gtest.h>

#include <set>

#include "comm/flight_recorder.h"
#include "tests/comm/ranks_test.h"
#include "tests/parallel/toy_batches.h"
#include "tests/train/replica.h"
#include "train/pipeline_cut.h"

namespace orchard::testing {
namespace {

constexpr std::int64_t f32 = sizeof(float), experts = 8, top_k = 2;

// A tower, four layers of which two are sparse.
ModelConfig model(float capacity_factor = 0) {
  ModelConfig config;
  config.vision = {.layers = 2, .width = 32, .heads = 4, .mlp_width = 48, .patch = 2, .side = 6};
  config.connector = {.hidden = 12, .depth = 1, .out_side = 2};
  config.decoder = {
      .layers = 4,
      .hidden = 32,
      .ffn = 64,
      .heads = 8,
      .kv_heads = 2,
      .head_dim = 8,
      .vocabulary = 48,
      .max_positions = 16,
      .moe = {.experts = experts, .every = 2, .top_k = top_k, .capacity_factor = capacity_factor}};
  return config;
}

// "reduce-scatter of tp" -> bytes as the log counts them (see OperationStatistics).
using Moved = std::map<std::string, std::int64_t>;

void add(Moved& moved, const std::string& group, CommOp op, std::int64_t bytes) {
  if (bytes != 0) moved[fmt::format("{} of {}", name_of(op), group)] += bytes;
}

// Whatever groups there are: the ring of the process names them.
Moved moved_by(Communicator& world, const std::filesystem::path& ring) {
  Moved moved;
  std::set<std::string> names;
  for (const FlightLog::Group& group : FlightFile(ring).read().groups) names.insert(group.name);
  EXPECT_LT(std::ssize(names), FlightRecorder::max_groups) << "the ring has not all of them";
  for (const std::string& name : names) {
    for (std::size_t op = 0; op < comm_ops; ++op) {
      const auto which = static_cast<CommOp>(op);
      const OperationStatistics statistics = world.log().statistics(name, which);
      // A barrier moves none, and none is wanted.
      add(moved, name, which, which == CommOp::barrier ? statistics.calls : statistics.bytes);
    }
  }
  return moved;
}

// Experts chosen by the rows of a micro-batch in each sparse layer.
using Choices = std::vector<Routing>;

struct Step {
  const ParallelContext& ranks;
  const std::vector<MicroBatch>& micro_batches;  // of all replicas
  const std::vector<Choices>& choices;           // likewise
  float capacity_factor = 0;                     // 0: dropless

  std::int64_t tensor() const { return ranks[MeshGroup::tensor].size(); }
  std::int64_t share() const { return std::ssize(micro_batches) / ranks.mesh().data(); }
  // Of the micro-batches of a replica.
  std::int64_t first_of(int data) const { return data * share(); }
};

std::int64_t padded(std::int64_t n, std::int64_t to) {
  return (n + to - 1) / to * to;
}

// What tensor ranks that share rows send for one link; expert messages apart.
void add_tensor_bytes(Moved& moved, const Step& step, LinkKind kind, const MicroBatch& batch) {
  const ModelConfig config = model();
  const std::int64_t rows = batch.sequences * batch.length,
                     x = padded(rows, step.tensor()) * config.decoder.hidden,
                     tower = padded(batch.tiles * (config.vision.patches() + 1), step.tensor()) *
                             config.vision.width,
                     targets = padded(batch.target_count, target_multiple);
  const auto scatter = [&](std::int64_t n) { add(moved, "tp", CommOp::reduce_scatter, n * f32); };
  const auto gather = [&](std::int64_t n) { add(moved, "tp", CommOp::all_gather, n * f32); };
  // A pair of products sums its outputs and its input's gradient, and gathers its input, that once
  // more for the weight gradient, and its outputs' gradient.
  const auto pair = [&](std::int64_t n) {
    scatter(2 * n);
    gather(3 * n);
  };
  switch (kind) {
    case LinkKind::stem:  // the gradient of its rows
    case LinkKind::connector:
      return gather(tower);
    case LinkKind::vision_block:
      pair(tower);
      return pair(tower);
    case LinkKind::lookup:
      scatter(x);
      return gather(x);
    case LinkKind::dense_layer:
      pair(x);
      return pair(x);
    case LinkKind::sparse_layer:
      pair(x);
      // Logits of every rank's rows; the gradients of the gates.
      return gather(padded(rows, step.tensor()) * experts + rows * top_k);
    case LinkKind::head:
      if (targets > 0) gather(x);
      gather(step.tensor() * targets * softmax_statistics);
      return scatter(x);
    case LinkKind::vision_norm:
    case LinkKind::final_norm:
      return;
  }
}

// With a capacity every rank sends every target as many rows as any tensor rank could keep of an expert,
// and nothing is counted.
void add_fixed_expert_bytes(Moved& moved, const Step& step) {
  const Communicator& group = step.ranks[MeshGroup::expert_layer];
  if (group.size() == 1) return;
  const MicroBatch& batch = step.micro_batches[0];
  const std::int64_t rows = batch.sequences * batch.length,
                     part = padded(rows, step.tensor()) / step.tensor(),
                     capacity = expert_capacity(batch.length, step.capacity_factor, experts);
  std::vector<std::int64_t> kept(static_cast<std::size_t>(step.tensor() * batch.sequences));
  std::vector<std::int64_t> of_share(static_cast<std::size_t>(step.tensor()));
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int64_t share = row / part, sequence = row / batch.length;
    of_share[static_cast<std::size_t>(share)] +=
        kept[static_cast<std::size_t>(share * batch.sequences + sequence)]++ < capacity;
  }
  const std::int64_t targets = experts / step.ranks.mesh().layout().expert * group.size();
  add(moved, group.name(), CommOp::all_to_all,
      4 * targets * std::ranges::max(of_share) * model().decoder.hidden * f32);
}

// Of one sparse layer and round of micro-batches, one of each replica: dispatch, its gradient and both
// ways back take each row to or from this rank, and the counts are gathered once.
void add_expert_bytes(Moved& moved, const Step& step, std::size_t layer, std::int64_t round) {
  const Communicator& group = step.ranks[MeshGroup::expert_layer];
  const Mesh& mesh = step.ranks.mesh();
  const std::vector<int> members = mesh.group(MeshGroup::expert_layer, step.ranks.rank());
  const std::int64_t here = experts / mesh.layout().expert;
  std::int64_t ends = 0;  // of rows, at this rank
  for (int owner = 0; owner < group.size(); ++owner) {
    const MeshCoordinates at = mesh.coordinates(members[static_cast<std::size_t>(owner)]);
    const Routing& routing =
        step.choices[static_cast<std::size_t>(step.first_of(at.data) + round)][layer];
    const std::int64_t rows = std::ssize(routing.chosen) / top_k,
                       part = padded(rows, step.tensor()) / step.tensor();
    for (std::int64_t row = at.tensor * part; row < std::min((at.tensor + 1) * part, rows); ++row) {
      for (std::int64_t j = 0; j < top_k; ++j) {
        const std::int32_t expert = routing.chosen[static_cast<std::size_t>(row * top_k + j)];
        if (expert < 0) continue;
        for (int holder = 0; holder < group.size(); ++holder) {
          const MeshCoordinates there = mesh.coordinates(members[static_cast<std::size_t>(holder)]);
          if (there.expert == expert / here)
            ends += (owner == group.rank()) + (holder == group.rank());
        }
      }
    }
  }
  if (group.size() == 1) return;
  add(moved, group.name(), CommOp::all_to_all, 2 * ends * model().decoder.hidden * f32);
  add(moved, group.name(), CommOp::all_gather, group.size() * (here * group.size() + 1) * f32);
}

// Between stages, from what the last link of each hands on.
void add_pipeline_bytes(Moved& moved, const Step& step, const std::vector<LinkKind>& kinds,
                        const MicroBatch& batch) {
  const ModelConfig config = model();
  const PipelineStages& stages = step.ranks.stages();
  const auto local = [&](std::int64_t rows) { return padded(rows, step.tensor()) / step.tensor(); };
  for (int stage = 0; stage + 1 < stages.count(); ++stage) {
    const LinkKind last = kinds[static_cast<std::size_t>(stages.links(stage).last - 1)];
    std::int64_t n = local(batch.sequences * batch.length) * config.decoder.hidden;
    if (last == LinkKind::connector) {
      n = batch.tiles * config.connector.tokens() * config.decoder.hidden;
    } else if (last < LinkKind::connector) {
      n = local(batch.tiles * (config.vision.patches() + 1)) * config.vision.width;
    }
    const int from = stages.place_of(stage).rank, to = stages.place_of(stage + 1).rank,
              me = step.ranks.coordinates().pipeline;
    if (from == to) continue;
    if (from == me) add(moved, "pp", CommOp::exchange, n * f32);
    if (to == me) add(moved, "pp-gradients", CommOp::exchange, n * f32);
  }
}

// Gradients to their owners and values back, of what this rank holds.
void add_parameter_bytes(Moved& moved, const Step& step, Replica& replica) {
  for (const Parameter& p : replica.store().parameters()) {
    const std::int64_t bytes = padded(p.shape().numel(), 32) * f32;
    const bool is_expert = p.spec.sharding.expert >= 0;
    const std::string group = is_expert ? "edp" : "dp";
    add(moved, group, CommOp::reduce_scatter, bytes);
    add(moved, group, CommOp::all_gather, bytes);
    const orchard::Reduction& reduction = p.shard.reduction;
    if (reduction.partial)
      add(moved,
          reduction.replicas == step.tensor() ? "tp"
                                              : fmt::format("tp-replicas-{}", reduction.replicas),
          CommOp::all_reduce, bytes);
    if (reduction.copy != TiedCopy::none)
      add(moved, "pp-tied", CommOp::all_reduce, p.owned.gradient.numel() * f32);
  }
}

Moved expected_bytes(const Step& step, Replica& replica) {
  Moved moved;
  const std::vector<LinkKind> kinds = link_kinds(model());
  const PipelineStages& stages = step.ranks.stages();
  std::vector<LinkRange> own = stages.links_of_rank(step.ranks.coordinates().pipeline);
  if (stages.ranks() == 1) own = {{0, static_cast<int>(kinds.size())}};
  for (std::int64_t round = 0; round < step.share(); ++round) {
    const MicroBatch& batch = step.micro_batches[static_cast<std::size_t>(
        step.first_of(step.ranks.coordinates().data) + round)];
    for (const auto& [first, last] : own) {
      for (int i = first; i < last; ++i) {
        const LinkKind kind = kinds[static_cast<std::size_t>(i)];
        if (step.tensor() > 1) add_tensor_bytes(moved, step, kind, batch);
        if (kind != LinkKind::sparse_layer) continue;
        const auto layer = std::count(kinds.begin(), kinds.begin() + i, LinkKind::sparse_layer);
        if (step.capacity_factor > 0) {
          add_fixed_expert_bytes(moved, step);
        } else {
          add_expert_bytes(moved, step, static_cast<std::size_t>(layer), round);
        }
      }
    }
    if (stages.ranks() > 1) add_pipeline_bytes(moved, step, kinds, batch);
  }
  add_parameter_bytes(moved, step, replica);
  // Three losses and each sparse layer's counts of choices, before and after capacity; the norm.
  const std::int64_t sums = 3 + 2 * 2 * experts, value = sizeof(double);
  const auto on_host = [&](const Communicator& group, std::int64_t values) {
    add(moved, group.name(), CommOp::host, group.size() * values * value);
  };
  on_host(step.ranks[MeshGroup::data], sums);
  if (stages.ranks() > 1) on_host(step.ranks[MeshGroup::pipeline], sums);
  const Communicator& world = step.ranks[MeshGroup::world];
  add(moved, world.name(), CommOp::all_gather, world.size() * value);
  return moved;
}

TEST(StepBytes, OfEveryGroupFollowFromTheLayout) {
  const auto world = session->world();
  if (world->size() == 1) GTEST_SKIP() << "needs several ranks";
  const SharedFolder folder(*world);
  const std::filesystem::path ring = flight_file(folder / "rings", world->rank());
  if (world->rank() == 0) std::filesystem::create_directories(folder / "rings");
  world->barrier();
  world->log().recorder().record_in(ring, "a rank");

  // What ranks with experts train, dropless and with a capacity.
  struct Work {
    explicit Work(float factor)
        : capacity_factor(factor), micro_batches(mixed_steps(model(factor))[0]) {
      const auto one = make_single_communicator();
      const ParallelContext alone(*one, {});
      Replica reference(model(factor), {}, alone);
      for (const MicroBatch& batch : micro_batches) choices.push_back(reference.route(batch));
    }
    float capacity_factor;
    std::vector<MicroBatch> micro_batches;
    std::vector<Choices> choices;
  };
  const Work dropless(0), limited(1);

  using enum ScheduleKind;
  struct {
    Layout layout;
    ScheduleKind schedule = one_forward_one_backward;
    bool has_capacity = false;
  } const cases[] = {{{.expert = 4}},
                     {{.tensor = 2, .expert = 2}},
                     {{.tensor = 2, .expert = 2, .expert_tensor = 2}},
                     {{.tensor = 4, .expert = 4}},
                     {{.pipeline = 2, .expert = 2}},
                     {{.tensor = 2, .pipeline = 2, .expert = 2}},
                     {{.tensor = 2, .pipeline = 2, .expert = 2}, zero_bubble_v},
                     {{.expert = 4}, one_forward_one_backward, true},
                     {{.tensor = 2, .expert = 2, .expert_tensor = 2}, gpipe, true},
                     {{.tensor = 2, .pipeline = 2, .expert = 2}, zero_bubble_v, true}};
  int checked = 0;
  for (const auto& [layout, schedule, has_capacity] : cases) {
    const auto& [capacity_factor, micro_batches, choices] = has_capacity ? limited : dropless;
    const StepTotals totals{
        .targets = 100, .real_rows = 100, .sequences = 10, .sizes = sizes_of(micro_batches)};
    const ParallelContext ranks(
        *world, layout, SequenceParallel::yes,
        cut_pipeline(model(), {.schedule = schedule}, layout.pipeline,
                     Workload{.tokens = 12, .document_length = 6, .targets = 8, .tiles = 1}));
    SCOPED_TRACE(fmt::format("{}, capacity {}, {}", layout.to_string(), capacity_factor,
                             ranks.mesh().name(world->rank())));
    Replica replica(model(capacity_factor), {.shards = {.bucket_bytes = 4096}}, ranks);
    const Step step{.ranks = ranks,
                    .micro_batches = micro_batches,
                    .choices = choices,
                    .capacity_factor = capacity_factor};
    const auto first = static_cast<std::size_t>(step.first_of(ranks.coordinates().data)),
               count = static_cast<std::size_t>(step.share());
    const Moved expected = expected_bytes(step, replica), before = moved_by(*world, ring);
    replica.step(std::span(micro_batches).subspan(first, count), totals,
                 std::span(choices).subspan(first, count), 1e-3, 1);
    Moved moved = moved_by(*world, ring);
    for (const auto& [what, bytes] : before) moved[what] -= bytes;
    std::erase_if(moved, [](const auto& entry) { return entry.second == 0; });
    EXPECT_EQ(moved, expected);
    EXPECT_GT(moved.size(), 6u);
    ++checked;
  }
  EXPECT_EQ(checked, 10);
}

}  // namespace
}  // namespace orchard::testing

int main(int argc, char** argv) {
  return orchard::testing::rank_tests_main(argc, argv);
}
