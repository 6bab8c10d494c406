// A run that was stopped and resumed is the run that was not: the same losses and the same
// checkpoints, bit for bit.
#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include <fstream>

#include "tests/train/toy_run.h"
#include "train/checkpoint_folder.h"

namespace orchard::testing {
namespace {

// Everything of a step that the order of work or the data could change. Times may differ.
struct StepFacts {
  int stage;
  std::int64_t step, tokens, targets, tiles;
  double loss, balance_loss, z_loss, gradient_norm, learning_rate;
  std::vector<std::vector<double>> expert_load;
  bool operator==(const StepFacts&) const = default;
};

void PrintTo(const StepFacts& facts, std::ostream* out) {
  *out << "stage " << facts.stage << " step " << facts.step << " loss " << facts.loss
       << " gradient norm " << facts.gradient_norm;
}

std::vector<StepFacts> facts_of(const Recorder& recorder) {
  std::vector<StepFacts> facts;
  for (const StepEvent& e : recorder.steps) {
    const LossReport& losses = e.report.losses;
    facts.push_back({e.stage, e.step, e.tokens, e.targets, e.tiles, losses.loss,
                     losses.balance_loss, losses.z_loss, e.report.gradient_norm, e.learning_rate,
                     losses.expert_load});
  }
  return facts;
}

std::vector<std::uint8_t> bytes_of(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  require(file.is_open(), "cannot read {}", path.string());
  return {std::istreambuf_iterator<char>(file), {}};
}

// Calls of train that resume each other, each on a device of its own as in a new process. `stops`
// are the steps of the calls before the last, which runs to the end.
std::vector<StepFacts> train_in_parts(const RunConfig& run,
                                      const std::vector<std::int64_t>& stops) {
  Recorder recorder;
  const auto call = [&](std::int64_t stop_after) {
    const auto device = make_cpu_device({.threads = 1});
    const auto alone = make_single_communicator();
    train(run, {.resume = Resume::from_latest, .stop_after_steps = stop_after}, *device, *alone,
          recorder);
  };
  for (const std::int64_t steps : stops) call(steps);
  call(0);
  return facts_of(recorder);
}

class ResumeTest : public ::testing::TestWithParam<DType> {
 protected:
  ResumeTest() { write_toy_training_set(scratch_ / "set"); }

  RunConfig run(std::int64_t steps) const {
    RunConfig run = toy_run(scratch_ / "set", steps);
    run.dtype = GetParam();
    run.micro_batch = 2;
    return run;
  }

  // Each list of stops against the uninterrupted run.
  void expect_equal_runs(RunConfig run, std::int64_t steps,
                         const std::vector<std::vector<std::int64_t>>& all_stops) const {
    run.run_folder = scratch_ / "whole";
    const std::vector<StepFacts> whole = train_in_parts(run, {});
    ASSERT_EQ(whole.size(), static_cast<std::size_t>(steps));
    EXPECT_NE(whole.front().loss, whole.back().loss);
    EXPECT_GT(whole.front().tiles, 0);
    for (const auto& stops : all_stops) {
      RunConfig parts = run;
      parts.run_folder = scratch_ / fmt::format("stopped-{}", fmt::join(stops, "-"));
      EXPECT_EQ(train_in_parts(parts, stops), whole) << parts.run_folder;
      for (const StageConfig& stage : run.stages) {
        // The files hold no times, so equal bytes are equal parameters and optimizer state.
        EXPECT_EQ(bytes_of(CheckpointFolder(parts.run_folder).final_of(stage.number)),
                  bytes_of(CheckpointFolder(run.run_folder).final_of(stage.number)))
            << parts.run_folder << ", end of stage " << stage.number;
      }
    }
  }

 private:
  Scratch scratch_;
};

TEST_P(ResumeTest, AStopAfterAnyStepChangesNoBit) {
  expect_equal_runs(run(5), 5, {{1}, {2}, {3}, {4}, {1, 1, 2}});
}

TEST_P(ResumeTest, AStopOnEitherSideOfAStageBoundaryChangesNoBit) {
  RunConfig two = run(3);
  // Another optimizer, and a larger side, for which the position tables are resized.
  StageConfig second = toy_stage(2, 3);
  second.side = 12;
  second.optimizer = {.kind = OptimizerKind::adafactor, .factor_threshold = 16};
  two.stages.push_back(second);
  expect_equal_runs(two, 6, {{2}, {3}, {4}, {2, 2, 1}});
}

INSTANTIATE_TEST_SUITE_P(DTypes, ResumeTest, ::testing::Values(DType::f32, DType::bf16),
                         [](const auto& test) { return std::string(name_of(test.param)); });

}  // namespace
}  // namespace orchard::testing
