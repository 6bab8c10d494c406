// The number of ranks does not change what is learnt. Run under mpirun; every rank also trains
// alone, and compares.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>

#include "tests/comm/ranks_test.h"
#include "tests/train/replica.h"
#include "tests/train/toy_run.h"

namespace orchard::testing {
namespace {

constexpr std::int64_t steps = 20;
// Ranks only change the order in which gradients are summed. The project promises 1e-5 over 20
// steps in fp32, which leaves room for what the optimizer makes of a last bit.
constexpr double tolerance = 1e-5;

void expect_close(double parallel, double alone, std::int64_t step, const char* what) {
  EXPECT_NEAR(parallel, alone, tolerance * std::abs(alone)) << what << " of step " << step;
}

// What train reports on these ranks; nothing but on rank 0.
Recorder trained(RunConfig run, Communicator& ranks, const std::filesystem::path& folder) {
  std::filesystem::create_directories(folder);  // as the command does
  run.run_folder = folder;
  const auto device = make_cpu_device({.threads = 1});
  Recorder recorder;
  train(run, {}, *device, ranks, recorder);
  return recorder;
}

void expect_close(const Recorder& parallel, const Recorder& alone) {
  ASSERT_EQ(parallel.steps.size(), alone.steps.size());
  for (std::size_t s = 0; s < alone.steps.size(); ++s) {
    const StepEvent &a = alone.steps[s], &p = parallel.steps[s];
    expect_close(p.report.losses.loss, a.report.losses.loss, a.step, "loss");
    EXPECT_EQ(p.targets, a.targets);
    EXPECT_EQ(p.tokens, a.tokens);
  }
  ASSERT_EQ(parallel.validations.size(), alone.validations.size());
  for (std::size_t v = 0; v < alone.validations.size(); ++v) {
    expect_close(parallel.validations[v].report.loss, alone.validations[v].report.loss,
                 alone.validations[v].step, "held-out loss");
  }
}

TEST(Ranks, DenseLossesAreThoseOfOneRank) {
  const Scratch scratch;  // of this rank: ranks agree without sharing a file
  write_toy_training_set(scratch / "set");
  RunConfig run = toy_run(scratch / "set", steps);
  run.model.decoder.moe = {};
  const auto world = session->world(), one = make_single_communicator();
  // The observer hears rank 0 only.
  Recorder alone;
  if (world->rank() == 0) {
    alone = trained(run, *one, scratch / "alone");
    EXPECT_EQ(alone.steps.size(), static_cast<std::size_t>(steps));
    EXPECT_EQ(alone.validations.size(), 2u);
  }
  for (const int tensor : {1, 2}) {
    if (world->size() % tensor != 0) continue;
    run.layout.tensor = tensor;
    SCOPED_TRACE(fmt::format("tp {}", tensor));
    const Recorder parallel = trained(run, *world, scratch / fmt::format("tp{}", tensor));
    if (world->rank() == 0) expect_close(parallel, alone);
  }
  world->barrier();
}

TEST(Ranks, ValidateEverySoManySteps) {
  const Scratch scratch;
  write_toy_training_set(scratch / "set");
  const auto world = session->world(), one = make_single_communicator();
  const std::pair<std::int64_t, std::vector<std::int64_t>> cases[] = {{5, {0, 2, 4, 5}},
                                                                      {4, {0, 2, 4}}};
  for (const auto& [length, expected] : cases) {
    RunConfig run = toy_run(scratch / "set", length);
    run.model.decoder.moe = {};
    run.validate_every = 2;
    const Recorder parallel = trained(run, *world, scratch / fmt::format("{} steps", length));
    if (world->rank() != 0) continue;
    std::vector<std::int64_t> validated;
    for (const ValidationEvent& event : parallel.validations) validated.push_back(event.step);
    EXPECT_EQ(validated, expected);
    // What stands between steps sees the weights of its step, and moves none.
    RunConfig less = run;
    less.validate_every = 0;
    const Recorder seldom = trained(less, *one, scratch / fmt::format("{} alone", length));
    ASSERT_EQ(seldom.steps.size(), parallel.steps.size());
    for (std::size_t s = 0; s < seldom.steps.size(); ++s)
      expect_close(parallel.steps[s].report.losses.loss, seldom.steps[s].report.losses.loss,
                   seldom.steps[s].step, "loss");
    EXPECT_NE(parallel.validations[1].report.loss, parallel.validations[0].report.loss);
    EXPECT_NE(parallel.validations[1].report.loss, parallel.validations[2].report.loss);
  }
  world->barrier();
}

// Of 8 sequences with at most 4 in a forward pass 1 and 2 ranks take 4, and 4 ranks have 2 each.
TEST(Ranks, AMicroBatchIsAsLargeAsFits) {
  const Scratch scratch;
  write_toy_training_set(scratch / "set");
  RunConfig run = toy_run(scratch / "set", steps);
  run.micro_batch = 4;
  run.stages.front().global_batch = 8;
  const auto world = session->world(), one = make_single_communicator();
  const auto says = [](std::int64_t number, std::int64_t sequences) {
    return ::testing::Contains(fmt::format(
        "stage 1: {} micro-batches of {} sequences a replica and step", number, sequences));
  };
  const int ranks = world->size();
  const std::int64_t sequences = std::min(4, 8 / ranks);
  const auto compare = [&](const std::filesystem::path& folder) {
    const Recorder parallel = trained(run, *world, folder / "parallel");
    if (world->rank() != 0) return;
    const Recorder alone = trained(run, *one, folder / "alone");
    EXPECT_THAT(alone.messages, says(2, 4));
    EXPECT_THAT(parallel.messages, says(8 / ranks / sequences, sequences));
    expect_close(parallel, alone);
    const LossReport &a = alone.steps.front().report.losses,
                     &p = parallel.steps.front().report.losses;
    expect_close(p.balance_loss, a.balance_loss, 1, "balance loss");
    EXPECT_EQ(p.expert_load, a.expert_load);
    EXPECT_EQ(p.expert_dropped, a.expert_dropped);
  };
  // One step of a mixture of experts, before a last bit can send a row elsewhere.
  run.stages.front().steps = 1;
  run.stages.front().warmup = 0;
  compare(scratch / "sparse");
  run.stages.front() = toy_stage(1, steps);
  run.stages.front().global_batch = 8;
  run.model.decoder.moe = {};
  compare(scratch / "dense");
  world->barrier();
}

// The next stage of a recipe: what the first one learnt goes on from its file, with position tables for
// larger pictures and another optimizer, under whatever layout.
TEST(Ranks, AStageChangeIsThatOfOneRank) {
  const auto world = session->world(), one = make_single_communicator();
  const SharedFolder folder(*world);  // a stage reads what the first rank wrote of the one before
  if (world->rank() == 0) write_toy_training_set(folder / "set");
  world->barrier();
  struct {
    const char* name;
    Layout layout;
    bool is_sparse = false;
  } const cases[] = {{"tp2", {.tensor = 2}},
                     {"pp2", {.pipeline = 2}},
                     {"tp2pp2", {.tensor = 2, .pipeline = 2}},
                     {"ep2", {.expert = 2}, true},
                     {"tp2ep2", {.tensor = 2, .expert = 2}, true}};
  for (const auto& [name, layout, is_sparse] : cases) {
    if (world->size() % (layout.tensor * layout.pipeline) || world->size() % layout.expert)
      continue;
    SCOPED_TRACE(name);
    RunConfig run = toy_run(folder / "set", 4);
    if (!is_sparse) run.model.decoder.moe = {};
    StageConfig second = toy_stage(2, 4);
    second.side = 12;
    second.optimizer = {.kind = OptimizerKind::adafactor, .factor_threshold = 16};
    run.stages.push_back(second);
    Recorder alone;
    if (world->rank() == 0) {
      alone = trained(run, *one, folder / (std::string(name) + "-alone"));
      ASSERT_EQ(alone.steps.size(), 8u);
      EXPECT_GT(alone.steps.back().tiles, 0) << "no picture has the larger side";
    }
    run.layout = layout;
    const Recorder parallel = trained(run, *world, folder / name);
    if (world->rank() == 0) expect_close(parallel, alone);
  }
}

// Before the first update all ranks hold the same weights, so even the routing is the same.
TEST(Ranks, FirstStepOfAMixtureOfExpertsReportsWhatOneRankReports) {
  const Scratch scratch;
  write_toy_training_set(scratch / "set");
  const RunConfig run = toy_run(scratch / "set", 1);
  const auto world = session->world(), one = make_single_communicator();
  const Recorder parallel = trained(run, *world, scratch / "parallel");
  if (world->rank() == 0) {
    const Recorder alone = trained(run, *one, scratch / "alone");
    const StepReport &a = alone.steps.at(0).report, &p = parallel.steps.at(0).report;
    expect_close(p.losses.loss, a.losses.loss, 1, "loss");
    expect_close(p.losses.balance_loss, a.losses.balance_loss, 1, "balance loss");
    expect_close(p.losses.z_loss, a.losses.z_loss, 1, "z-loss");
    expect_close(p.gradient_norm, a.gradient_norm, 1, "gradient norm");
    EXPECT_EQ(p.losses.expert_load, a.losses.expert_load);
    EXPECT_EQ(p.losses.expert_dropped, a.losses.expert_dropped);
    EXPECT_EQ(p.losses.dropped, a.losses.dropped);
  }
  world->barrier();
}

ModelConfig stage_model(const RunConfig& run, const TrainingSet& set) {
  ModelConfig model = run.model;
  model.vision.side = run.stages.front().side;
  model.decoder.vocabulary = set.tokenizer().vocabulary();
  return model;
}

ReplicaOptions options_of(const RunConfig& run) {
  return {.seed = run.seed, .optimizer = run.stages.front().optimizer};
}

void expect_no_bad(const BadSample& bad) {
  ADD_FAILURE() << bad.id << ": " << bad.reason;
}

TEST(RoutingReplay, AStepSendsRowsWhereItSays) {
  const Scratch scratch;
  write_toy_training_set(scratch / "set");
  const RunConfig run = toy_run(scratch / "set", 1);
  const TrainingSet set = TrainingSet::open(run.training_set);
  StageData data(set, run, run.stages.front(), run.micro_batch);
  const auto one = make_single_communicator();
  const ParallelContext ranks(*one, {});
  Replica replica(stage_model(run, set), options_of(run), ranks);
  const auto loader = data.make_loader({.on_bad = expect_no_bad});
  const std::vector<MicroBatch> batches{loader->next().value()};
  std::vector<std::vector<Routing>> routing{replica.route(batches[0])};
  for (Routing& layer : routing[0]) {
    for (std::size_t i = 0; i < layer.chosen.size(); ++i) {
      if (layer.chosen[i] >= 0) layer.chosen[i] = i % 2 ? 3 : 1;
    }
  }
  const StepReport report = replica.step(batches, {1, 1, 1}, routing, 1e-3, 1);
  EXPECT_EQ(report.losses.expert_load, (std::vector<std::vector<double>>{{0, 0.5, 0, 0.5}}));
}

TEST(Ranks, MixtureOfExpertsLossesAreThoseOfOneRank) {
  const Scratch scratch;
  write_toy_training_set(scratch / "set");
  const RunConfig run = toy_run(scratch / "set", steps);
  const StageConfig& stage = run.stages.front();
  const TrainingSet set = TrainingSet::open(run.training_set);
  StageData data(set, run, stage, run.micro_batch);
  const auto world = session->world(), one = make_single_communicator();
  const ModelConfig config = stage_model(run, set);
  const ParallelContext single(*one, {}), ranks(*world, {});
  Replica alone(config, options_of(run), single), parallel(config, options_of(run), ranks);
  const auto all = data.make_loader({.on_bad = expect_no_bad});
  const auto mine =
      data.make_loader({.rank = world->rank(), .ranks = world->size(), .on_bad = expect_no_bad});
  ChoiceComparison choices;
  for (std::int64_t step = 1; step <= steps; ++step) {
    const StepPlan plan = data.step_plan(step);
    const StepTotals totals{
        .targets = plan.targets, .real_rows = plan.real_rows, .sequences = stage.global_batch};
    std::vector<MicroBatch> batches, share;
    std::vector<std::vector<Routing>> reference;
    for (std::size_t m = 0; m < plan.micro_batches.size(); ++m) {
      batches.push_back(all->next().value());
      reference.push_back(alone.route(batches.back()));
    }
    const auto of_rank = plan.of_rank(world->rank(), world->size());
    const std::span<const std::vector<Routing>> share_reference(
        reference.begin() + (of_rank.data() - plan.micro_batches.data()), of_rank.size());
    for (const std::vector<Routing>& wanted : share_reference) {
      share.push_back(mine->next().value());
      const std::vector<Routing> own = parallel.route(share.back());
      for (std::size_t layer = 0; layer < own.size(); ++layer)
        choices.add(own[layer], wanted[layer]);
    }
    const StepReport a = alone.step(batches, totals, reference, stage.peak_lr, step),
                     p = parallel.step(share, totals, share_reference, stage.peak_lr, step);
    expect_close(p.losses.loss, a.losses.loss, step, "loss");
    expect_close(p.losses.balance_loss, a.losses.balance_loss, step, "balance loss");
    expect_close(p.losses.z_loss, a.losses.z_loss, step, "z-loss");
    EXPECT_EQ(p.losses.expert_load, a.losses.expert_load);
  }
  EXPECT_EQ(choices.flipped, 0) << "of " << choices.clear << " choices with a clear margin";
  EXPECT_GT(choices.clear, choices.rows * 9 / 10) << "too few choices have a clear margin";
}

}  // namespace
}  // namespace orchard::testing

int main(int argc, char** argv) {
  return orchard::testing::rank_tests_main(argc, argv);
}
