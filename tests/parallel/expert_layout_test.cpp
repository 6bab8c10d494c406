// Training with experts on several ranks is training on one: losses over steps and every gradient.
// One program of 8 ranks under mpirun; meshes of fewer ranks run beside each other.
#include <gtest/gtest.h>

#include "tests/comm/ranks_test.h"
#include "tests/parallel/layout_harness.h"
#include "tests/parallel/toy_batches.h"
#include "train/checkpoint.h"

namespace orchard::testing {
namespace {

// Two layers, the second one sparse, and pictures.
ModelConfig sparse_model(float capacity_factor) {
  ModelConfig config;
  config.vision = {.layers = 1, .width = 32, .heads = 4, .mlp_width = 48, .patch = 2, .side = 6};
  config.connector = {.hidden = 12, .depth = 1, .out_side = 2};
  config.decoder = {.layers = 2,
                    .hidden = 32,
                    .ffn = 64,
                    .heads = 8,
                    .kv_heads = 2,
                    .head_dim = 8,
                    .vocabulary = 48,
                    .max_positions = 16,
                    .moe = {.experts = 8, .every = 2, .capacity_factor = capacity_factor}};
  return config;
}

LayoutTask sparse_task(float capacity_factor, Recompute recompute = Recompute::none) {
  LayoutTask task{.name = fmt::format("sparse, capacity {}", capacity_factor),
                  .model = sparse_model(capacity_factor)};
  task.model.recompute = recompute;
  task.steps = mixed_steps(task.model);
  return task;
}

LayoutOutcome reference_of(const LayoutTask& task) {
  const auto alone = make_single_communicator();
  return run_layout(task, {.ranks = ParallelContext(*alone, {})});
}

struct Case {
  int ranks = 1;
  int tp = 1, ep = 1, etp = 1;
  SequenceParallel sequence_parallel = SequenceParallel::yes;
  ExpertDispatchOptions options = {};

  Layout layout() const { return {.tensor = tp, .expert = ep, .expert_tensor = etp}; }
  std::string to_string() const {
    return fmt::format("{} ranks, {}, sequence parallelism {}, dispatch {}, {} chunks", ranks,
                       layout().to_string(),
                       sequence_parallel == SequenceParallel::yes ? "on" : "off",
                       static_cast<int>(options.dispatch), options.chunks);
  }
};

// Both factorisations of a number of ranks. Chunks go along in turn.
std::vector<Case> all_cases(int ranks) {
  std::vector<Case> cases;
  for (const int tp : {1, 2, 4}) {
    for (const int ep : {1, 2, 4, 8}) {
      for (const int etp : {1, 2, 4}) {
        if (ranks % tp || ranks % (ep * etp) || tp * ep * etp == 1) continue;
        for (const SequenceParallel rows : {SequenceParallel::yes, SequenceParallel::no}) {
          if (rows == SequenceParallel::no && tp == 1) continue;
          const int chunks = 1 + static_cast<int>(cases.size()) % 2;
          cases.push_back({ranks, tp, ep, etp, rows, {.chunks = chunks}});
        }
      }
    }
  }
  return cases;
}

class ExpertLayouts : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { world_ = session->world({.ranks_per_node = 2}); }
  static void TearDownTestSuite() { world_.reset(); }

  // This rank's mesh of `ranks`, several of which may run the same case; null where there are too
  // few ranks.
  static std::unique_ptr<Communicator> mesh_of(int ranks) {
    if (ranks > world_->size()) return nullptr;
    std::vector<int> places(static_cast<std::size_t>(ranks));
    std::iota(places.begin(), places.end(), world_->rank() / ranks * ranks);
    return world_->make_group("mesh", places);
  }

  static LayoutOutcome run(LayoutTask task, const Case& c, Communicator& mesh,
                           const LayoutOutcome& reference) {
    task.options.experts = c.options;
    return run_layout(task, {.ranks = ParallelContext(mesh, c.layout(), c.sequence_parallel),
                             .reference = &reference});
  }

  static inline std::unique_ptr<Communicator> world_;
};

// What no tolerance covers.
TEST_F(ExpertLayouts, TheComparisonSeesChoicesDropsAndKeyBiases) {
  LayoutTask task = sparse_task(1);
  task.steps.resize(1);
  const LayoutOutcome reference = reference_of(task);
  const auto alone = make_single_communicator();
  const LayoutOutcome right = run(task, {}, *alone, reference);
  EXPECT_EQ(differences(right, reference, {}), "");
  const auto expect_seen = [&](const std::string& complaint, auto&& change) {
    LayoutOutcome wrong = right;
    change(wrong);
    const std::string said = differences(wrong, reference, {});
    EXPECT_NE(said.find(complaint), std::string::npos) << "'" << said << "', not: " << complaint;
  };
  expect_seen("0 choices are clear", [](LayoutOutcome& wrong) { wrong.choices = {}; });
  expect_seen("choices are clear", [](LayoutOutcome& wrong) { wrong.choices.clear = 1; });
  expect_seen("clear choices are others", [](LayoutOutcome& wrong) { wrong.choices.flipped = 1; });
  ASSERT_GT(right.losses[0].dropped.at(0), 0);
  expect_seen("dropped choices",
              [](LayoutOutcome& wrong) { wrong.losses[0].dropped.at(0) *= 1 + 1e-15; });
  expect_seen("dropped choices",
              [](LayoutOutcome& wrong) { wrong.losses[0].expert_dropped.at(0).at(0) += 1e-15; });
  const std::string attention = "vision.layers.0.attention.";
  const double terms = norm(right.gradients.at(attention + "wk"));
  expect_seen("gradient of " + attention + "bk is not zero", [&](LayoutOutcome& wrong) {
    wrong.gradients.at(attention + "bk").at(0) = static_cast<float>(2e-6 * terms);
  });
}

// Dropless and with a capacity, in turn. Meshes of fewer ranks share the cases.
TEST_F(ExpertLayouts, LossesAndGradientsAreThoseOfOneRank) {
  const LayoutTask tasks[] = {sparse_task(0), sparse_task(1)};
  const LayoutOutcome references[] = {reference_of(tasks[0]), reference_of(tasks[1])};
  for (const int ranks : {2, 4, 8}) {
    const auto mesh = mesh_of(ranks);
    if (!mesh) continue;
    const int meshes = world_->size() / ranks;
    int number = 0;
    for (const Case& c : all_cases(ranks)) {
      ++number;
      if (number % meshes != world_->rank() / ranks) continue;
      const int which = number / meshes % 2;
      EXPECT_EQ(differences(run(tasks[which], c, *mesh, references[which]), references[which], {}),
                "")
          << tasks[which].name << ", " << c.to_string();
    }
    EXPECT_GE(number, 3 * ranks);
  }
}

// Three ways to do the same additions in the same order.
TEST_F(ExpertLayouts, DispatcherOverlapAndRecomputationChangeNoBit) {
  const LayoutTask kept = sparse_task(0), recomputed = sparse_task(0, Recompute::blocks);
  const LayoutOutcome reference = reference_of(kept);
  for (const int chunks : {1, 2}) {
    for (const auto& [tp, ep, etp] : {std::tuple{1, 4, 1}, {2, 4, 2}, {4, 2, 4}}) {
      const auto mesh = mesh_of(8);
      if (!mesh) return;
      const Case direct{.ranks = 8,
                        .tp = tp,
                        .ep = ep,
                        .etp = etp,
                        .options = {.dispatch = ExpertDispatch::direct, .chunks = chunks}};
      Case by_node = direct, waiting = direct;
      by_node.options.dispatch = ExpertDispatch::by_node;
      waiting.options.overlap = Overlap::no;
      const LayoutOutcome first = run(kept, direct, *mesh, reference);
      EXPECT_EQ(differences(first, reference, {}), "") << direct.to_string();
      EXPECT_TRUE(run(kept, direct, *mesh, reference).has_bits_of(first)) << "a second run";
      EXPECT_TRUE(run(kept, by_node, *mesh, reference).has_bits_of(first)) << by_node.to_string();
      EXPECT_TRUE(run(kept, waiting, *mesh, reference).has_bits_of(first)) << "without overlap";
      EXPECT_TRUE(run(recomputed, direct, *mesh, reference).has_bits_of(first)) << "recomputed";
    }
  }
}

// Tensor, expert and data ranks, rows in chunks of both kinds.
constexpr Layout everything{.tensor = 2, .expert = 2, .expert_tensor = 2, .tensor_chunks = 2};

// A run that is saved and loaded goes on as if nothing had happened.
TEST_F(ExpertLayouts, AResumedRunGoesOnBitForBit) {
  const auto mesh = mesh_of(8);
  if (!mesh) return;
  const SharedFolder folder(*mesh);
  const ParallelContext ranks(*mesh, everything);
  for (const OptimizerKind kind : {OptimizerKind::adamw, OptimizerKind::adafactor}) {
    LayoutTask task = sparse_task(0);
    task.options.optimizer = {.kind = kind, .factor_threshold = 8};
    task.options.experts.chunks = 2;
    Replica run(task.model, task.options, ranks), resumed(task.model, task.options, ranks);
    const auto step = [&](Replica& replica, std::int64_t number) {
      const auto all = std::span(task.steps[static_cast<std::size_t>(number) % 4]);
      const std::size_t count = all.size() / static_cast<std::size_t>(ranks.mesh().data());
      const auto mine =
          all.subspan(static_cast<std::size_t>(ranks.coordinates().data) * count, count);
      return replica.step(mine, {.targets = 100, .real_rows = 100, .sequences = 10}, {}, 3e-3,
                          number);
    };
    for (std::int64_t number = 1; number <= 2; ++number) step(run, number);
    const std::filesystem::path file = folder / fmt::format("{}.h5", static_cast<int>(kind));
    save_checkpoint(file, {.step = 2}, run.stream(), *mesh, run.store(), run.optimizer());
    mesh->barrier();
    load_parameters(file, resumed.stream(), resumed.store(), PositionTables::exact);
    load_optimizer(file, resumed.stream(), resumed.optimizer());
    for (std::int64_t number = 3; number <= 4; ++number) {
      const StepReport wanted = step(run, number), own = step(resumed, number);
      EXPECT_EQ(own.losses.loss, wanted.losses.loss);
      EXPECT_EQ(own.gradient_norm, wanted.gradient_norm);
    }
    for (const Parameter* p : run.store().catalogue())
      EXPECT_EQ(resumed.gradient(*resumed.store().find(p->spec.name), ranks),
                run.gradient(*p, ranks))
          << p->spec.name;
  }
}

// A rank that holds another expert, or another part of one, than the others think.
TEST_F(ExpertLayouts, AWrongSplitIsCaught) {
  const auto mesh = mesh_of(4);
  if (!mesh) return;
  const LayoutTask task = sparse_task(0);
  const LayoutOutcome reference = reference_of(task);
  const ParallelContext ranks(*mesh, {.expert = 2, .expert_tensor = 2});
  const auto differences_with = [&](const Sabotage& sabotage) {
    const LayoutRun run{.ranks = ranks, .reference = &reference, .sabotage = sabotage};
    return differences(run_layout(task, run), reference, {});
  };
  ASSERT_EQ(differences_with({}), "");
  for (const char* matrix : {"w_gate", "w_up", "w_down"}) {
    const auto find = [&](Replica& replica, int expert) -> const Parameter& {
      return *replica.store().find(
          fmt::format("decoder.layers.1.feed_forward.experts.{}.{}", expert, matrix));
    };
    EXPECT_NE(differences_with([&](Replica& replica) {
                const Parameter& p = find(replica, 2);
                const auto whole = gather_whole(replica.stream(), ranks, p.spec, p.master);
                if (!p.is_here()) return;
                Slice others = p.shard.slice;
                others.begin = others.begin == 0 ? others.count : 0;
                std::vector<float> elements(static_cast<std::size_t>(p.shape().numel()));
                cut(p.spec.shape, others, whole, elements);
                replica.store().write(replica.stream(), p, elements);
              }),
              "")
        << "the other part of " << matrix;
    EXPECT_NE(differences_with([&](Replica& replica) {
                const Parameter &p = find(replica, 1), &other = find(replica, 6);
                const auto whole = gather_whole(replica.stream(), ranks, other.spec, other.master);
                if (!p.is_here()) return;
                std::vector<float> elements(static_cast<std::size_t>(p.shape().numel()));
                cut(p.spec.shape, p.shard.slice, whole, elements);
                replica.store().write(replica.stream(), p, elements);
              }),
              "")
        << "another expert's " << matrix;
  }
}

}  // namespace
}  // namespace orchard::testing

int main(int argc, char** argv) {
  return orchard::testing::rank_tests_main(argc, argv);
}
