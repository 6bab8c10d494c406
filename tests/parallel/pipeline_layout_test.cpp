// Training in a pipeline is training on one rank: losses over steps and every gradient, under every
// schedule, with tensor, expert and data parallelism inside the stages. One program of 8 ranks under
// mpirun; meshes of fewer ranks run beside each other.
#include <gtest/gtest.h>

#include "tests/comm/ranks_test.h"
#include "tests/parallel/faulty_communicator.h"
#include "tests/parallel/layout_harness.h"
#include "tests/parallel/toy_batches.h"
#include "train/pipeline_cut.h"

namespace orchard::testing {
namespace {

// A tower, and four layers; two of them may be sparse.
ModelConfig toy_model(std::int64_t experts) {
  ModelConfig config;
  config.vision = {.layers = 2, .width = 32, .heads = 4, .mlp_width = 48, .patch = 2, .side = 6};
  config.connector = {.hidden = 12, .depth = 1, .out_side = 2};
  config.decoder = {.layers = 4,
                    .hidden = 32,
                    .ffn = 64,
                    .heads = 8,
                    .kv_heads = 2,
                    .head_dim = 8,
                    .vocabulary = 48,
                    .max_positions = 16,
                    .moe = {.experts = experts, .every = 2}};
  return config;
}

LayoutTask task_of(std::int64_t experts) {
  LayoutTask task{.name = experts > 0 ? "sparse" : "dense", .model = toy_model(experts)};
  task.steps = mixed_steps(task.model);
  return task;
}

const LayoutOutcome& reference_of(const LayoutTask& task) {
  static std::map<std::string, LayoutOutcome> known;
  const auto [at, is_new] = known.try_emplace(task.name);
  if (is_new) {
    const auto alone = make_single_communicator();
    at->second = run_layout(task, {.ranks = ParallelContext(*alone, {})});
  }
  return at->second;
}

struct Case {
  int ranks = 2;
  PipelineOptions pipeline;
  Layout layout = {.pipeline = 2};
  SequenceParallel sequence_parallel = SequenceParallel::yes;

  std::string to_string() const {
    return fmt::format("{} ranks, {}, {} with {} chunks, sequence parallelism {}", ranks,
                       layout.to_string(), name_of(pipeline.schedule), pipeline.chunks_of_rank(),
                       sequence_parallel == SequenceParallel::yes ? "on" : "off");
  }
};

ParallelContext context_of(Communicator& ranks, const LayoutTask& task, const Case& c) {
  return ParallelContext(
      ranks, c.layout, c.sequence_parallel,
      cut_pipeline(task.model, c.pipeline, c.layout.pipeline,
                   {.tokens = 12, .document_length = 6, .targets = 8, .tiles = 1}));
}

// Runs the cases, those of the same size next to each other.
void expect_same_everywhere(const LayoutTask& task, const std::vector<Case>& cases) {
  const LayoutOutcome& reference = reference_of(task);
  const auto world = session->world();
  for (const int size : {2, 4, 8}) {
    if (size > world->size()) break;
    const auto ranks = group_of(*world, size);
    const int groups = world->size() / size;
    int number = 0;
    for (const Case& c : cases) {
      if (c.ranks != size || number++ % groups != world->rank() / size) continue;
      const ParallelContext context = context_of(*ranks, task, c);
      const LayoutOutcome outcome = run_layout(task, {.ranks = context, .reference = &reference});
      EXPECT_EQ(differences(outcome, reference, {}), "")
          << task.name << ", " << c.to_string() << ", " << context.mesh().name(context.rank());
    }
  }
  world->barrier();
}

constexpr ScheduleKind same_map[] = {ScheduleKind::gpipe, ScheduleKind::one_forward_one_backward,
                                     ScheduleKind::zero_bubble_h1};

TEST(Pipelines, OfDenseModels) {
  std::vector<Case> cases;
  for (const ScheduleKind kind : schedule_kinds) {
    for (const int stages : {2, 4, 8}) {
      for (int ranks = stages; ranks <= 8; ranks *= 2) {
        const bool is_deep = stages == 8 && default_chunks(kind) == 2;  // more stages than links
        if (!is_deep) cases.push_back({ranks, {.schedule = kind}, {.pipeline = stages}});
      }
    }
  }
  cases.push_back({2, {.schedule = ScheduleKind::interleaved, .chunks = 3}, {.pipeline = 2}});
  // Lookup and head far from the ends of the ranks, and stages as uneven as they may be.
  cases.push_back({4, {.stage_blocks = {1, 1, 1, 9}}, {.pipeline = 4}});
  cases.push_back({4, {.stage_blocks = {9, 1, 1, 1}}, {.pipeline = 4}});
  cases.push_back({2,
                   {.schedule = ScheduleKind::zero_bubble_v, .stage_blocks = {1, 5, 5, 1}},
                   {.pipeline = 2}});
  // The lookup on the second rank, the head on the first and on the second.
  cases.push_back({2,
                   {.schedule = ScheduleKind::zero_bubble_v, .stage_blocks = {5, 2, 3, 2}},
                   {.pipeline = 2}});
  cases.push_back(
      {2, {.schedule = ScheduleKind::interleaved, .stage_blocks = {5, 2, 3, 2}}, {.pipeline = 2}});
  expect_same_everywhere(task_of(0), cases);
}

// Every legal way to share 2, 4 and 8 ranks, with each schedule where there are few ways, and with
// one schedule after the other where there are many.
TEST(Pipelines, OfTensorExpertAndDataParallelStages) {
  std::vector<Case> cases;
  std::size_t next = 0;
  for (const int ranks : {2, 4, 8}) {
    for (const int pp : {2, 4}) {
      for (const int tp : {1, 2, 4}) {
        for (const int ep : {1, 2, 4}) {
          for (const int etp : {1, 2, 4}) {
            if (ranks % (pp * tp) != 0 || ranks % (pp * ep * etp) != 0) continue;
            const Layout layout{.tensor = tp, .pipeline = pp, .expert = ep, .expert_tensor = etp};
            for (const ScheduleKind kind : schedule_kinds) {
              if (ranks == 8 && next++ % 4 != 0) continue;
              const auto rows = next % 2 == 0 ? SequenceParallel::yes : SequenceParallel::no;
              cases.push_back({ranks, {.schedule = kind}, layout, rows});
            }
          }
        }
      }
    }
  }
  EXPECT_GT(cases.size(), 60u);
  expect_same_everywhere(task_of(8), cases);
}

// Runs a case with this rank's group; of several groups all do the same.
LayoutOutcome run_with(const LayoutTask& task, const Case& c, const LayoutOutcome& reference) {
  const auto world = session->world();
  const auto ranks = group_of(*world, c.ranks);
  const ParallelContext context = context_of(*ranks, task, c);
  LayoutOutcome outcome = run_layout(task, {.ranks = context, .reference = &reference});
  world->barrier();
  return outcome;
}

TEST(BitEqual, SchedulesWithTheSameStages) {
  if (session->world()->size() < 8) GTEST_SKIP() << "needs eight ranks";
  for (const std::int64_t experts : {0, 8}) {
    const LayoutTask task = task_of(experts);
    for (const Layout& layout :
         {Layout{.pipeline = 4}, {.tensor = 2, .pipeline = 2, .expert = experts > 0 ? 2 : 1}}) {
      std::vector<LayoutOutcome> outcomes;
      for (const ScheduleKind kind : same_map)
        outcomes.push_back(run_with(task, {8, {.schedule = kind}, layout}, reference_of(task)));
      EXPECT_TRUE(outcomes[1].has_bits_of(outcomes[0])) << "1f1b, " << layout.to_string();
      EXPECT_TRUE(outcomes[2].has_bits_of(outcomes[0])) << "zb-h1, " << layout.to_string();
    }
  }
}

TEST(BitEqual, TheSameLayoutTwiceOverlapAndRecomputation) {
  if (session->world()->size() < 8) GTEST_SKIP() << "needs eight ranks";
  const LayoutTask task = task_of(8);
  LayoutTask recomputing = task, waiting = task;
  recomputing.model.recompute = Recompute::blocks;
  waiting.options.overlap = Overlap::no;
  const LayoutOutcome& reference = reference_of(task);
  for (const ScheduleKind kind : schedule_kinds) {
    const Case c{8, {.schedule = kind}, {.pipeline = 2, .expert = 4}};
    const LayoutOutcome first = run_with(task, c, reference);
    EXPECT_TRUE(first.has_bits_of(run_with(task, c, reference))) << c.to_string();
    EXPECT_TRUE(first.has_bits_of(run_with(waiting, c, reference))) << c.to_string();
    EXPECT_TRUE(first.has_bits_of(run_with(recomputing, c, reference))) << c.to_string();
  }
}

TEST(Pipelines, RoundAsOneRankDoesInBf16) {
  if (session->world()->size() < 8) GTEST_SKIP() << "needs eight ranks";
  LayoutTask narrow = task_of(0);
  narrow.name = "dense, bf16";
  narrow.options.dtype = DType::bf16;
  const LayoutOutcome& alone = reference_of(narrow);
  const LayoutOutcome& exact = reference_of(task_of(0));
  for (const ScheduleKind kind : schedule_kinds) {
    for (const Layout& layout : {Layout{.pipeline = 2}, {.tensor = 2, .pipeline = 4}}) {
      const Case c{8, {.schedule = kind}, layout};
      EXPECT_EQ(rounding_differences(run_with(narrow, c, alone), alone, exact), "")
          << c.to_string();
    }
  }
}

// Bytes that cross the end of a stage in a step, from the layout alone: the local share of the rows
// that the stage's last link hands on.
std::int64_t bytes_after(const LayoutTask& task, const Case& c, int last_link) {
  const ModelConfig& model = task.model;
  const auto tower = static_cast<int>(model.vision.layers) + 1;  // stem, blocks, output
  const std::int64_t ranks = c.sequence_parallel == SequenceParallel::yes ? c.layout.tensor : 1;
  const auto local = [&](std::int64_t rows) { return (rows + ranks - 1) / ranks; };
  std::int64_t elements = 0;
  for (const MicroBatch& batch : task.steps[0]) {
    if (last_link <= tower) {
      elements += local(batch.tiles * (model.vision.patches() + 1)) * model.vision.width;
    } else if (last_link == tower + 1) {
      elements += batch.tiles * model.connector.tokens() * model.decoder.hidden;
    } else {
      elements += local(batch.sequences * batch.length) * model.decoder.hidden;
    }
  }
  return elements * static_cast<std::int64_t>(size_of(task.options.dtype));
}

// Each stage sends its output once, the gradient of its input once, and its part of the tied
// gradient once a step: a message more or less would show.
TEST(Bytes, BetweenStagesFollowFromTheLayout) {
  const auto world = session->world();
  if (world->size() < 4) GTEST_SKIP() << "needs four ranks";
  const auto ranks = group_of(*world, 4);
  for (const DType dtype : {DType::f32, DType::bf16}) {
    LayoutTask task = task_of(0);
    task.options.dtype = dtype;
    task.steps.resize(1);
    std::vector<Case> cases;
    for (const ScheduleKind kind : schedule_kinds) {
      cases.push_back({4, {.schedule = kind}, {.pipeline = 4}});
      for (const SequenceParallel rows : {SequenceParallel::no, SequenceParallel::yes})
        cases.push_back({4, {.schedule = kind}, {.tensor = 2, .pipeline = 2}, rows});
    }
    for (const Case& c : cases) {
      const ParallelContext context = context_of(*ranks, task, c);
      Replica replica(task.model, task.options, context);
      const Communicator& pipeline = context[MeshGroup::pipeline];
      const auto sent = [](const Communicator& group) {
        return group.statistics(CommOp::exchange).bytes;
      };
      const std::int64_t activations = sent(pipeline),
                         gradients = sent(context.pipeline_gradients());
      const Communicator* const tied = replica.shards().tied_ranks();
      const std::int64_t tables = tied ? tied->statistics(CommOp::all_reduce).bytes : 0;
      replica.step(task.steps[0], {.targets = 100, .real_rows = 100, .sequences = 10}, {}, 1e-3, 1);
      const PipelineStages& stages = context.stages();
      std::int64_t forward = 0, backward = 0;
      for (int stage = 0; stage + 1 < stages.count(); ++stage) {
        const int from = stages.place_of(stage).rank, to = stages.place_of(stage + 1).rank;
        if (from == to) continue;
        const std::int64_t bytes = bytes_after(task, c, stages.links(stage).last - 1);
        if (from == pipeline.rank()) forward += bytes;
        if (to == pipeline.rank()) backward += bytes;
      }
      EXPECT_EQ(sent(pipeline) - activations, forward) << c.to_string();
      EXPECT_EQ(sent(context.pipeline_gradients()) - gradients, backward) << c.to_string();
      if (tied) {
        const Parameter& table = *replica.store().find("embedding");
        EXPECT_EQ(tied->statistics(CommOp::all_reduce).bytes - tables, 4 * table.gradient.numel());
      }
    }
  }
  world->barrier();
}

// What the comparison says of two stages with something wrong.
class PipelineFaults : public ::testing::TestWithParam<ScheduleKind> {
 protected:
  void SetUp() override {
    world_ = session->world();
    if (world_->size() < 2) GTEST_SKIP() << "needs two ranks";
    pair_ = group_of(*world_, 2);
    // No message may be zero anyway: nobody could tell that it went missing.
    task_.name = "busy";
    std::vector<MicroBatch> batches;
    for (const ToyShape& shape : {ToyShape{.sequences = 2, .length = 13, .tiles = 1, .padding = 3},
                                  {.sequences = 1, .length = 11, .tiles = 2}})
      batches.push_back(toy_micro_batch(task_.model, shape, std::to_string(shape.tiles)));
    task_.steps = {batches};
  }

  std::string differences_with(Fault& fault, const Sabotage& sabotage = {}) {
    const LayoutOutcome& reference = reference_of(task_);
    FaultyCommunicator faulty(*pair_, fault);
    Case c{2, {.schedule = GetParam()}, {.pipeline = 2}};
    // Lookup and head on different ranks, and of a vee on the same one.
    if (GetParam() == ScheduleKind::interleaved) c.pipeline.stage_blocks = {3, 2, 4, 3};
    if (GetParam() == ScheduleKind::zero_bubble_v) c.pipeline.stage_blocks = {6, 2, 2, 2};
    const ParallelContext context = context_of(faulty, task_, c),
                          faultless = context_of(*pair_, task_, c);
    try {
      return differences(run_layout(task_, {.ranks = context,
                                            .reference = &reference,
                                            .sabotage = sabotage,
                                            .comparing = &faultless}),
                         reference, {});
    } catch (const Error& error) {
      return error.what();  // a loss that is not finite, on both
    }
  }

  // Both ranks of a pair have the same verdict where either has noticed.
  bool is_noticed(Fault& fault, const Sabotage& sabotage = {}) {
    double seen = differences_with(fault, sabotage).empty() ? 0 : 1;
    pair_->max_on_host({&seen, 1});
    return seen > 0;
  }

  LayoutTask task_ = task_of(0);
  std::unique_ptr<Communicator> world_, pair_;
};

TEST_P(PipelineFaults, AMissingMessageIsCaught) {
  for (const char* group : {"pp", "pp-gradients"}) {
    Fault none{.group = group, .op = CommOp::exchange, .call = -1};
    ASSERT_EQ(differences_with(none), "") << "without a fault";
    double receives = none.seen;  // of a step, of the rank that has more
    pair_->max_on_host({&receives, 1});
    ASSERT_GT(receives, 0) << group;
    for (int call = 0; call < receives; ++call) {
      Fault fault{.group = group, .op = CommOp::exchange, .call = call};
      EXPECT_TRUE(is_noticed(fault)) << group << ", receive " << call << " of " << receives;
    }
  }
}

// The losses are on the last stage, until their sum.
TEST_P(PipelineFaults, ALostSumOfTheStagesLossesIsCaught) {
  Fault fault{.group = "pp", .op = CommOp::host};
  EXPECT_TRUE(is_noticed(fault));
  EXPECT_GT(fault.seen, 0);
}

TEST_P(PipelineFaults, AWrongSumOfTheTiedGradientsIsCaught) {
  if (GetParam() == ScheduleKind::zero_bubble_v) {
    // Lookup and head are on one rank. The head's part is left out:
    Fault none{.group = "none"};
    EXPECT_TRUE(is_noticed(none, [](Replica& replica) {
      for (Parameter& p : replica.store().parameters()) p.shard.tied_here = false;
    }));
    return;
  }
  for (const FaultKind kind : {FaultKind::missing, FaultKind::doubled}) {
    Fault fault{.group = "pp-tied", .op = CommOp::all_reduce, .kind = kind};
    EXPECT_TRUE(is_noticed(fault)) << (kind == FaultKind::missing ? "missing" : "doubled");
    EXPECT_GT(fault.seen, 0);
  }
}

TEST_P(PipelineFaults, ATableThatCountsTwiceInTheNormIsCaught) {
  if (GetParam() == ScheduleKind::zero_bubble_v) GTEST_SKIP() << "has one table";
  task_.options.meddle = [](ParameterStore& store) {
    for (Parameter& p : store.parameters())
      if (p.shard.reduction.copy == TiedCopy::second) p.shard.reduction.copy = TiedCopy::first;
  };
  Fault none{.group = "none"};
  EXPECT_TRUE(is_noticed(none));
}

INSTANTIATE_TEST_SUITE_P(Schedules, PipelineFaults, ::testing::ValuesIn(schedule_kinds),
                         [](const auto& test) {
                           std::string name(name_of(test.param));
                           std::erase(name, '-');
                           return name;
                         });

}  // namespace
}  // namespace orchard::testing

int main(int argc, char** argv) {
  return orchard::testing::rank_tests_main(argc, argv);
}
