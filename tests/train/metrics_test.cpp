#include "train/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "data/atomic_file.h"
#include "tests/data/scratch.h"
#include "tests/train/events.h"

namespace orchard::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

// A run of two stages of four steps: validated at both ends of each.
void record(Observer& observer, RunPosition after, RunPosition last) {
  for (int stage = 1; stage <= 2; ++stage) {
    for (std::int64_t step = 0; step <= 4; ++step) {
      const RunPosition position{stage, step};
      if (position <= after || position > last) continue;
      if (step > 0) observer.on_step(make_step(stage, step, 4));
      if (step % 4 == 0) observer.on_validation(make_validation(stage, step, 4));
    }
  }
}

constexpr RunPosition start{0, 0}, end{2, 4};

TEST(Metrics, AreOneFlatObjectAStep) {
  Scratch scratch;
  MetricsFile metrics(scratch / "run", start);
  metrics.on_step(make_step(1, 2));
  EXPECT_EQ(
      read_text(scratch / "run" / "metrics.jsonl"),
      R"({"kind":"step","stage":1,"step":2,"steps":8,"loss":3.55,"balance_loss":2.25,)"
      R"("z_loss":11.5,"grad_norm":0.875,"lr":0.0005,"tokens":4002,"targets":1502,)"
      R"("tiles":12,"expert_load":[[0.4,0.2,0.2,0.2],[0.25,0.25,0.125,0.375]],)"
      R"("expert_dropped":[[0.075,0.0,0.0,0.0],[0.02,0.02,0.0,0.0]],)"
      R"("dropped":[0.03,0.01],"tokens_per_s":1883.2941176470588,"step_seconds":2.125,)"
      R"("data_seconds":0.125,"forward_seconds":0.5,"backward_seconds":1.0,)"
      R"("pipeline_seconds":0.125,"reduce_seconds":0.0625,"optimizer_seconds":0.25,"wait_seconds":0.03125,"bad_samples":3})"
      "\n");
}

TEST(Metrics, OfAnEarlierVersionCanBeRead) {
  Scratch scratch;
  const auto path = scratch / "metrics.jsonl";
  {
    MetricsFile metrics(scratch / "", start);
    metrics.on_step(make_step(1, 2));
  }
  std::string text = read_text(path);
  const std::size_t from = text.find("\"expert_dropped\""), to = text.find("\"dropped\"");
  ASSERT_LT(from, to);
  text.erase(from, to - from);
  write_file(path, text);
  const RunMetrics read = read_metrics(scratch / "");
  ASSERT_EQ(read.steps.size(), 1u);
  EXPECT_TRUE(read.steps[0].report.losses.expert_dropped.empty());
  EXPECT_EQ(read.steps[0].report.losses.dropped, make_step(1, 2).report.losses.dropped);
}

TEST(Metrics, AreReadBackBitForBit) {
  Scratch scratch;
  MetricsFile metrics(scratch / "", start);
  StepEvent step = make_step(1, 3);
  step.report.losses.loss = 0.1 + 0.2;  // needs all seventeen digits
  const ValidationEvent validation = make_validation(1, 3);
  metrics.on_step(step);
  metrics.on_validation(validation);

  const RunMetrics read = read_metrics(scratch / "");
  ASSERT_EQ(read.steps.size(), 1u);
  const StepEvent& s = read.steps[0];
  EXPECT_EQ(s.stage, step.stage);
  EXPECT_EQ(s.step, step.step);
  EXPECT_EQ(s.steps, step.steps);
  EXPECT_EQ(s.report.losses.loss, step.report.losses.loss);
  EXPECT_EQ(s.report.losses.balance_loss, step.report.losses.balance_loss);
  EXPECT_EQ(s.report.losses.z_loss, step.report.losses.z_loss);
  EXPECT_EQ(s.report.losses.expert_load, step.report.losses.expert_load);
  EXPECT_EQ(s.report.losses.expert_dropped, step.report.losses.expert_dropped);
  EXPECT_EQ(s.report.losses.dropped, step.report.losses.dropped);
  EXPECT_EQ(s.report.gradient_norm, step.report.gradient_norm);
  EXPECT_EQ(s.report.seconds.forward, step.report.seconds.forward);
  EXPECT_EQ(s.report.seconds.backward, step.report.seconds.backward);
  EXPECT_EQ(s.report.seconds.pipeline, step.report.seconds.pipeline);
  EXPECT_EQ(s.report.seconds.reduce, step.report.seconds.reduce);
  EXPECT_EQ(s.report.seconds.optimizer, step.report.seconds.optimizer);
  EXPECT_EQ(s.report.seconds.wait, step.report.seconds.wait);
  EXPECT_EQ(s.learning_rate, step.learning_rate);
  EXPECT_EQ(s.tokens, step.tokens);
  EXPECT_EQ(s.targets, step.targets);
  EXPECT_EQ(s.tiles, step.tiles);
  EXPECT_EQ(s.step_seconds, step.step_seconds);
  EXPECT_EQ(s.data_seconds, step.data_seconds);
  EXPECT_EQ(s.bad_samples, step.bad_samples);

  ASSERT_EQ(read.validations.size(), 1u);
  const ValidationEvent& v = read.validations[0];
  EXPECT_EQ(v.stage, validation.stage);
  EXPECT_EQ(v.step, validation.step);
  EXPECT_EQ(v.seconds, validation.seconds);
  EXPECT_EQ(v.report.loss, validation.report.loss);
  EXPECT_EQ(v.report.targets, validation.report.targets);
  ASSERT_EQ(v.report.categories.size(), 2u);
  EXPECT_EQ(v.report.categories[1].category, "text_rich");
  EXPECT_EQ(v.report.categories[1].loss, 2.75);
  EXPECT_EQ(v.report.categories[1].targets, 300);
  EXPECT_EQ(v.report.categories[0].swap.samples, 0);
  EXPECT_EQ(v.report.categories[1].swap.samples, 48);
  EXPECT_EQ(v.report.categories[1].swap.difference, 0.125);
  EXPECT_EQ(v.report.swap.samples, 96);
  EXPECT_EQ(v.report.swap.own, 2.5);
  EXPECT_EQ(v.report.swap.swapped, 2.75);
  EXPECT_EQ(v.report.swap.z(), 4);
}

TEST(Metrics, OfAResumedRunEqualThoseOfAnUninterruptedOne) {
  Scratch scratch;
  {
    MetricsFile whole(scratch / "whole", start);
    record(whole, start, end);
  }
  const std::string expected = read_text(metrics_path(scratch / "whole"));
  // Stopped anywhere, resumed from any checkpoint before.
  for (const RunPosition resumed : {RunPosition{1, 2}, RunPosition{1, 4}, RunPosition{2, 3}}) {
    for (const RunPosition stopped : {resumed, RunPosition{2, 0}, end}) {
      if (stopped < resumed) continue;
      const auto folder = scratch / "resumed";
      {
        MetricsFile before(folder, start);
        record(before, start, stopped);
      }
      {
        MetricsFile after(folder, resumed);
        record(after, resumed, end);
      }
      EXPECT_EQ(read_text(metrics_path(folder)), expected)
          << "resumed after " << resumed.stage << "/" << resumed.step << ", stopped at "
          << stopped.stage << "/" << stopped.step;
    }
  }
}

TEST(Metrics, OfAFreshRunReplaceFormerOnes) {
  Scratch scratch;
  { MetricsFile(scratch / "", start).on_step(make_step(1, 1)); }
  MetricsFile fresh(scratch / "", start);
  EXPECT_TRUE(read_metrics(scratch / "").empty());
}

TEST(Metrics, SurviveALineCutOffByACrash) {
  Scratch scratch;
  { MetricsFile(scratch / "", start).on_step(make_step(1, 1)); }
  std::ofstream(metrics_path(scratch / ""), std::ios::app) << R"({"kind":"step","stage":1,"st)";
  EXPECT_EQ(read_metrics(scratch / "").steps.size(), 1u);
  MetricsFile resumed(scratch / "", {1, 1});
  resumed.on_step(make_step(1, 2));
  EXPECT_EQ(read_metrics(scratch / "").steps.size(), 2u);
}

TEST(Metrics, NameTheLineThatCannotBeRead) {
  Scratch scratch;
  { MetricsFile(scratch / "", start).on_step(make_step(1, 1)); }
  std::ofstream(metrics_path(scratch / ""), std::ios::app) << R"({"kind":"step","stage":1})"
                                                           << "\n";
  EXPECT_THAT(message_of([&] { read_metrics(scratch / ""); }),
              HasSubstr("metrics.jsonl:2: the field \"step\" is missing"));
}

TEST(Metrics, SayWhenTheDiskIsFullAndLeaveWholeLines) {
  Scratch scratch;
  MetricsFile metrics(scratch / "", start);
  metrics.on_step(make_step(1, 1));
  const auto size = std::filesystem::file_size(metrics_path(scratch / ""));
  const std::string message =
      message_on_full_disk(size + 20, [&] { metrics.on_step(make_step(1, 2)); });
  EXPECT_THAT(message, AllOf(StartsWith("cannot write "), HasSubstr("metrics.jsonl"),
                             HasSubstr("free some space")));
  EXPECT_EQ(std::filesystem::file_size(metrics_path(scratch / "")), size);
  metrics.on_step(make_step(1, 2));
  EXPECT_EQ(read_metrics(scratch / "").steps.size(), 2u);
}

}  // namespace
}  // namespace orchard::testing
