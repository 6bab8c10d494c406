// Training in a pipeline is training on one rank: losses over steps and every gradient, under every
// schedule, with tensor, expert and data parallelism inside the stages. One program of 8 ranks under
// mpirun; meshes of fewer ranks run beside each other.
#include <gtest/gtest.h>

#include "tests/comm/ranks_test.h"
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
void expect_same_everywhere(const LayoutTask& task, std::vector<Case> cases) {
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

const PipelineOptions schedules[] = {
    {.schedule = ScheduleKind::gpipe},         {.schedule = ScheduleKind::one_forward_one_backward},
    {.schedule = ScheduleKind::interleaved},   {.schedule = ScheduleKind::zero_bubble_h1},
    {.schedule = ScheduleKind::zero_bubble_v},
};

TEST(Pipelines, EverySchedule) {
  std::vector<Case> cases;
  for (const PipelineOptions& schedule : schedules) {
    for (const int stages : {2, 4}) cases.push_back({stages, schedule, {.pipeline = stages}});
  }
  expect_same_everywhere(task_of(0), cases);
}

}  // namespace
}  // namespace orchard::testing

int main(int argc, char** argv) {
  return orchard::testing::rank_tests_main(argc, argv);
}
