// `orchard train --pp 2` as its users meet it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <regex>

#include "data/atomic_file.h"
#include "tests/data/corpus.h"
#include "tests/data/scratch.h"
#include "tests/launch/program.h"
#include "train/metrics.h"

namespace orchard::testing {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

// Seven blocks: lookup, four layers, norm, head.
constexpr const char* recipe = R"([vision]
layers = 0
[decoder]
layers = 4
hidden = 16
ffn = 32
heads = 2
kv_heads = 1
head_dim = 8
[stage1]
steps = 4
global_batch = 8
sequence_length = 64
side = 14
mixture = equal
peak_lr = 1e-3
)";

// Of a schedule in the table that `orchard plan` prints.
double peak_saved(const std::string& table, const std::string& schedule) {
  const std::size_t line = table.find('\n' + schedule);
  require(line != std::string::npos, "no {} in {}", schedule, table);
  const std::string row = table.substr(line + 1, table.find('\n', line + 1) - line - 1);
  return std::stod(row.substr(row.rfind(' ')));
}

class PipelineProgram : public ::testing::Test {
 protected:
  PipelineProgram() {
    write_file(scratch_ / "small.ini", recipe);
    fs::create_directories(scratch_ / "corpus/text");
    std::ofstream text(scratch_ / "corpus/text/words.txt");
    for (const std::string& sentence : some_sentences(200)) text << sentence << "\n\n";
    text.close();
    const Outcome packed = orchard_alone("pack " + (scratch_ / "corpus").string() + " --out " +
                                         (scratch_ / "set").string() + " --vocabulary 340");
    require(packed.code == 0, "{}", packed.output);
  }

  fs::path folder(const std::string& run) const { return scratch_ / run; }
  std::string arguments(const std::string& run, const std::string& more = {}) const {
    return "train --recipe " + (scratch_ / "small.ini").string() + " --training-set " +
           (scratch_ / "set").string() + " --run-folder " + folder(run).string() + " " + more;
  }
  std::string final_bytes(const std::string& run) const {
    return read_text(folder(run) / "checkpoints/stage1.h5");
  }

  Scratch scratch_;
};

TEST_F(PipelineProgram, LearnsWhatOneRankDoes) {
  ASSERT_EQ(orchard_alone(arguments("alone")).code, 0);
  const RunMetrics alone = read_metrics(folder("alone"));
  for (const std::string schedule : {"gpipe", "1f1b", "interleaved", "zb-h1", "zb-v"}) {
    const Outcome outcome =
        orchard_on_two_ranks(arguments(schedule, "--pp 2 --schedule " + schedule));
    ASSERT_EQ(outcome.code, 0) << outcome.output;
    EXPECT_THAT(outcome.output, HasSubstr("stage 1: pipeline " + schedule + ", blocks 0-"));
    EXPECT_TRUE(fs::exists(folder(schedule) / "pipeline-stage1.svg"));
    const RunMetrics metrics = read_metrics(folder(schedule));
    ASSERT_EQ(metrics.steps.size(), alone.steps.size());
    for (std::size_t i = 0; i < alone.steps.size(); ++i) {
      const double loss = alone.steps[i].report.losses.loss;
      EXPECT_NEAR(metrics.steps[i].report.losses.loss, loss, 1e-5 * loss) << schedule;
    }
    ASSERT_EQ(metrics.validations.size(), 2u);
    const double held_out = alone.validations[1].report.loss;
    EXPECT_NEAR(metrics.validations[1].report.loss, held_out, 1e-5 * held_out) << schedule;
  }
  EXPECT_EQ(final_bytes("gpipe"), final_bytes("1f1b"));
  EXPECT_EQ(final_bytes("zb-h1"), final_bytes("1f1b"));
}

TEST_F(PipelineProgram, ResumesBitForBitAndInAnotherLayout) {
  const std::string zb_v = "--pp 2 --schedule zb-v ";
  ASSERT_EQ(orchard_on_two_ranks(arguments("whole", zb_v)).code, 0);
  ASSERT_EQ(orchard_on_two_ranks(arguments("parts", zb_v + "--stop-after 2")).code, 0);
  ASSERT_EQ(orchard_on_two_ranks(arguments("parts", zb_v + "--resume")).code, 0);
  EXPECT_EQ(final_bytes("parts"), final_bytes("whole"));

  ASSERT_EQ(orchard_on_two_ranks(arguments("moved", zb_v + "--stop-after 2")).code, 0);
  ASSERT_EQ(orchard_alone(arguments("moved", "--resume")).code, 0);
  const RunMetrics whole = read_metrics(folder("whole")), moved = read_metrics(folder("moved"));
  const double loss = whole.steps.back().report.losses.loss;
  EXPECT_NEAR(moved.steps.back().report.losses.loss, loss, 1e-5 * loss);
}

TEST_F(PipelineProgram, WhatCannotBeIsRefusedByName) {
  const std::pair<std::string, std::vector<std::string>> wrong[] = {
      {"--pp 3", {"pp 3", "nearest possible layout of 2 ranks is tp 1, pp 2"}},
      {"--pp 2 --balance even", {"layout.balance = even (--balance)", "counted | measured"}},
      {"--pp 2 --schedule zbv", {"layout.schedule = zbv (--schedule)", "zb-h1 | zb-v"}},
      {"--pp 2 --pipeline-chunks 2", {"schedule 1f1b has 1 chunk a rank, not 2"}},
      {"--pp 2 --schedule interleaved --pipeline-chunks 4",
       {"pp 2 x 4 chunks = 8 stages", "7 blocks", "with 3 pipeline chunks a rank"}},
      {"--pp 2 --stage-blocks 3,3", {"stage_blocks 3,3 are 6 in all", "a chain of 7 blocks"}},
      {"--pp 2 --stage-blocks 3,2,2", {"are of 3 stages, and the pipeline has 2"}},
      {"--pp 2 --stage-blocks 7,0", {"layout.stage_blocks = 7,0 (--stage-blocks)"}},
  };
  for (const auto& [more, parts] : wrong) {
    const Outcome outcome = orchard_on_two_ranks(arguments("refused", more));
    EXPECT_EQ(outcome.code, 78) << more;
    for (const std::string& part : parts) EXPECT_THAT(outcome.output, HasSubstr(part)) << more;
    EXPECT_FALSE(fs::exists(folder("refused")));
  }
}

// Times are taken once: whoever has them in its folder is cut by them, a resume too.
TEST_F(PipelineProgram, MeasuredTimesAreKeptAndDecideTheCut) {
  const std::string measured = "--pp 2 --balance measured ";
  const Outcome whole = orchard_on_two_ranks(arguments("whole", measured));
  ASSERT_EQ(whole.code, 0) << whole.output;
  EXPECT_THAT(whole.output, HasSubstr("balanced by times taken now, kept in "));
  const std::string times = "link-times-stage1.json";
  ASSERT_TRUE(fs::exists(folder("whole") / times));

  fs::create_directories(folder("parts"));
  fs::copy(folder("whole") / times, folder("parts") / times);
  for (const std::string more : {"--stop-after 2", "--resume"}) {
    const Outcome part = orchard_on_two_ranks(arguments("parts", measured + more));
    ASSERT_EQ(part.code, 0) << part.output;
    EXPECT_THAT(part.output, HasSubstr("balanced by the times in "));
  }
  EXPECT_EQ(read_text(folder("parts") / times), read_text(folder("whole") / times));
  EXPECT_EQ(final_bytes("parts"), final_bytes("whole"));

  const nlohmann::json kept = nlohmann::json::parse(read_text(folder("whole") / times));
  const std::pair<std::string, std::string> cuts[] = {{"lookup", "0-0 | 1-6"},
                                                      {"head", "0-5 | 6-6"}};
  for (const auto& [kind, cut] : cuts) {
    fs::create_directories(folder(kind));
    nlohmann::json changed = kept;
    changed["seconds"][kind]["forward"] = 1000;
    write_file(folder(kind) / times, changed.dump());
    const Outcome outcome = orchard_on_two_ranks(arguments(kind, measured));
    EXPECT_THAT(outcome.output, HasSubstr("pipeline 1f1b, blocks " + cut)) << kind;
  }

  const std::string plan = "plan --stages 2 --micro-batches 4 --run ";
  EXPECT_THAT(orchard_alone(plan + folder("head").string()).output,
              AllOf(HasSubstr("dense layer         4"), HasSubstr("backward ms"),
                    HasSubstr("cut by time:  blocks 0-5 | 6-6")));

  write_file(folder("head") / times, "{}");
  const Outcome damaged = orchard_on_two_ranks(arguments("head", measured + "--resume"));
  EXPECT_EQ(damaged.code, 1);
  EXPECT_THAT(damaged.output,
              AllOf(HasSubstr(times), HasSubstr("\"setting\" is missing"), HasSubstr("remove it")));
}

TEST_F(PipelineProgram, APlanShowsWhatBlocksCost) {
  const std::string blocks = "plan --stages 2 --micro-batches 4 --recipe " +
                             (scratch_ / "small.ini").string() + " --training-set " +
                             (scratch_ / "set").string();
  const Outcome counted = orchard_alone(blocks);
  EXPECT_EQ(counted.code, 0) << counted.output;
  EXPECT_THAT(counted.output, AllOf(HasSubstr("stage 1: micro-batches of 1 x 64 rows, 0.0 tiles"),
                                    HasSubstr("cut by FLOPs: blocks 0-"),
                                    Not(HasSubstr("cut by time")), HasSubstr("zb-v")));
  const Outcome measured = orchard_alone(blocks + " --measure --schedule zb-v");
  EXPECT_EQ(measured.code, 0) << measured.output;
  EXPECT_THAT(measured.output, AllOf(HasSubstr("forward ms"), HasSubstr("cut by time:  blocks 0-"),
                                     HasSubstr("zb-v: 2 stages x 2 chunks, 4 micro-batches")));
  // What is computed again and kept until the weight halves belongs to the plan.
  write_file(scratch_ / "small.ini", std::regex_replace(recipe, std::regex("\\[decoder\\]"),
                                                        "[decoder]\nrecompute = blocks"));
  const Outcome again = orchard_alone(blocks);
  EXPECT_EQ(again.code, 0) << again.output;
  EXPECT_LT(peak_saved(again.output, "1f1b"), peak_saved(counted.output, "1f1b"));
  EXPECT_GT(peak_saved(again.output, "zb-h1"), peak_saved(again.output, "1f1b"));

  const std::pair<std::string, std::string> wrong[] = {
      {"plan --measure", "--measure: name the run's blocks with --run or --recipe"},
      {"plan --run nowhere", "--run nowhere: has no resolved.ini"},
      {"plan --recipe tiny", "--training-set is missing"},
      {blocks + " --blocks 3x1", "--blocks: the blocks are those of the run"},
      {blocks + " --run x", "--recipe: the recipe is that of --run"},
      {blocks + " --recipe-stage 2", "--recipe-stage 2: the run has no such stage"},
  };
  for (const auto& [arguments, reason] : wrong) {
    const Outcome outcome = orchard_alone(arguments);
    EXPECT_EQ(outcome.code, 78) << arguments;
    EXPECT_THAT(outcome.output, HasSubstr(reason)) << arguments;
  }
}

TEST_F(PipelineProgram, AnExplicitCutIsFollowed) {
  const Outcome outcome = orchard_on_two_ranks(arguments("cut", "--pp 2 --stage-blocks 6,1"));
  EXPECT_EQ(outcome.code, 0) << outcome.output;
  EXPECT_THAT(outcome.output, HasSubstr("stage 1: pipeline 1f1b, blocks 0-5 | 6-6"));
}

}  // namespace
}  // namespace orchard::testing
