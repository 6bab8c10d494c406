// `orchard train --pp 2` as its users meet it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

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
      {"--pp 2 --schedule zbv", {"layout.schedule = zbv (--schedule)", "zb-h1 | zb-v"}},
      {"--pp 2 --pipeline-chunks 2", {"schedule 1f1b has 1 chunk a rank, not 2"}},
      {"--pp 2 --schedule interleaved --pipeline-chunks 4",
       {"pp 2 x 4 chunks = 8 stages", "7 blocks", "nearest possible layout"}},
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

TEST_F(PipelineProgram, AnExplicitCutIsFollowed) {
  const Outcome outcome = orchard_on_two_ranks(arguments("cut", "--pp 2 --stage-blocks 6,1"));
  EXPECT_EQ(outcome.code, 0) << outcome.output;
  EXPECT_THAT(outcome.output, HasSubstr("stage 1: pipeline 1f1b, blocks 0-5 | 6-6"));
}

}  // namespace
}  // namespace orchard::testing
