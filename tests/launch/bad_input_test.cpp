// Bad input that only shows while training runs: pictures that do not decode inside shards that are
// whole, and a tokenizer that is another training set's.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>
#include <regex>

#include "data/atomic_file.h"
#include "data/draft.h"
#include "data/training_set.h"
#include "tests/data/corpus.h"
#include "tests/data/scratch.h"
#include "tests/launch/program.h"

namespace orchard::testing {
namespace {

namespace fs = std::filesystem;
using ::testing::_;
using ::testing::AllOf;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::Pair;

// A tile is one picture of 14 x 14 pixels and becomes four visual tokens.
constexpr const char* recipe = R"([vision]
layers = 1
width = 16
heads = 2
mlp_width = 32
patch = 7
[connector]
hidden = 16
depth = 1
out_side = 2
[decoder]
layers = 1
hidden = 16
ffn = 32
heads = 2
kv_heads = 1
head_dim = 8
[stage1]
steps = 8
global_batch = 4
sequence_length = 128
side = 14
tiling = whole
mixture = equal
peak_lr = 1e-3
[stage2]
steps = 1
global_batch = 2
sequence_length = 128
side = 14
tiling = whole
mixture = equal
peak_lr = 1e-3
)";

// Far above what ending takes, far below what a rank left waiting would.
constexpr double soon = 60;

constexpr int sample_count = 400, first_held_out = 380;

class BadInput : public ::testing::Test {
 protected:
  BadInput() { write_file(scratch_ / "small.ini", recipe); }

  // Pictures with a line of text each. Where is_bad(i), the picture of sample i ends in its middle:
  // the header is whole, so that nothing but decoding finds out.
  template <class IsBad>
  void write_set(const fs::path& folder, const IsBad& is_bad, unsigned seed = 1) const {
    const auto sentences = some_sentences(sample_count, seed);
    const auto model = train_tokenizer(sentences, {.vocabulary = 340});
    const Tokenizer tokenizer(model, "test");
    fs::create_directories(folder);
    TrainingSetWriter writer(folder, {"captions"}, model, {});
    for (int i = 0; i < sample_count; ++i) {
      Picture picture = white(14, 14);
      paint(picture, 2, 2, 12, 9, color_of(std::to_string(i)));
      auto bytes = encode_png(picture);
      if (is_bad(i)) bytes.resize(bytes.size() / 2);
      Draft draft{
          .id = fmt::format("made:{}", i), .category = "captions", .parts = {}, .pictures = {}};
      draft.add_picture({std::move(bytes), picture.width, picture.height});
      draft.add_text(sentences[static_cast<std::size_t>(i)]);
      writer.add(tokenize(std::move(draft), tokenizer),
                 i < first_held_out ? Split::train : Split::held_out);
    }
    writer.finish();
  }

  std::string arguments(const fs::path& set, const std::string& more = {}) const {
    return "train --recipe " + (scratch_ / "small.ini").string() + " --training-set " +
           set.string() + " --run-folder " + run_.string() + " " + more;
  }

  // How often each bad training sample was told of. The run ends before it draws one twice, so that
  // who decodes a picture is who tells.
  static std::map<int, int> tellers_of(const std::string& output) {
    std::map<int, int> tellers;
    const std::regex told(R"(bad sample (\d+) )");
    for (std::sregex_iterator at(output.begin(), output.end(), told), end; at != end; ++at)
      if (const int sample = std::stoi((*at)[1]); sample < first_held_out) ++tellers[sample];
    return tellers;
  }

  Scratch scratch_;
  fs::path run_ = scratch_ / "run", set_ = scratch_ / "set", other_ = scratch_ / "other";
};

TEST_F(BadInput, APictureThatDoesNotDecodeIsCountedAndCostsItsTargetsOnly) {
  write_set(set_, [](int i) { return i % 10 == 3; });
  std::vector<double> alone;  // losses
  for (const std::string layout : {"", "--pp 1", "--pp 2"}) {
    SCOPED_TRACE(layout);
    const std::string words = arguments(set_, "--stage 1 " + layout);
    const Outcome outcome = layout.empty() ? orchard_alone(words) : orchard_on_two_ranks(words);
    ASSERT_EQ(outcome.code, 0) << outcome.output;
    EXPECT_THAT(outcome.output, AllOf(HasSubstr("bad sample "), HasSubstr("(made:"),
                                      HasSubstr("it keeps its place without targets")));
    // Of a pipeline the first stage alone.
    EXPECT_THAT(tellers_of(outcome.output), AllOf(Not(IsEmpty()), Each(Pair(_, 1))));
    std::int64_t bad = 0, steps = 0;
    std::istringstream lines(read_text(run_ / "metrics.jsonl"));
    for (std::string text; std::getline(lines, text);) {
      const auto line = nlohmann::json::parse(text);
      if (!line.contains("bad_samples")) continue;
      ++steps;
      bad += line["bad_samples"].get<std::int64_t>();
      ASSERT_TRUE(line["loss"].is_number()) << text;
      const auto loss = line["loss"].get<double>();
      if (layout.empty()) alone.push_back(loss);
      EXPECT_NEAR(loss, alone.at(static_cast<std::size_t>(steps - 1)), 1e-5 * loss);
    }
    EXPECT_EQ(steps, 8);
    EXPECT_GT(bad, 0);
    fs::remove_all(run_);
  }
}

TEST_F(BadInput, AHundredBadSamplesInARowEndEveryRank) {
  write_set(set_, [](int) { return true; });
  for (const bool two_ranks : {false, true}) {
    const std::string words = arguments(set_, "--stage 1 --set stage1.global_batch=32");
    const Outcome outcome = two_ranks ? orchard_on_two_ranks(words) : orchard_alone(words);
    EXPECT_EQ(outcome.code, 1) << outcome.output;
    EXPECT_THAT(outcome.output,
                AllOf(HasSubstr("100 samples in a row were bad"), HasSubstr("(made:"),
                      HasSubstr("pack it again"), Not(HasSubstr("Segmentation"))));
    EXPECT_LT(outcome.seconds, soon);
    EXPECT_FALSE(fs::exists(run_ / "checkpoints/stage1.h5"));
    fs::remove_all(run_);
  }
}

TEST_F(BadInput, GoodSamplesBetweenBadOnesKeepTheRunGoing) {
  write_set(set_, [](int i) { return i % 10 != 0; });
  const Outcome outcome = orchard_alone(arguments(set_, "--stage 1 --set stage1.steps=30"));
  EXPECT_EQ(outcome.code, 0) << outcome.output;
  EXPECT_THAT(outcome.output, Not(HasSubstr("in a row")));
}

TEST_F(BadInput, ATokenizerOfAnotherTrainingSetIsRefused) {
  const auto good = [](int) { return false; };
  write_set(set_, good);
  write_set(other_, good, 7);
  ASSERT_EQ(orchard_alone(arguments(set_, "--stage 1 --stop-after 2")).code, 0);
  const std::string checkpoint = (run_ / "checkpoints/stage1-step00000002.h5").string();
  const std::string run = " --run-folder " + run_.string();
  const std::string elsewhere = " --training-set " + other_.string();
  const std::string other_run = " --run-folder " + (scratch_ / "run2").string();
  const std::string commands[] = {
      arguments(other_, "--resume"),
      "train --recipe " + (scratch_ / "small.ini").string() + elsewhere + other_run +
          " --stage 2 --init " + checkpoint,
      "generate --prompt Number" + run + elsewhere,
      "eval" + run + elsewhere,
  };
  for (const std::string& command : commands) {
    const Outcome outcome = orchard_alone(command);
    EXPECT_NE(outcome.code, 0) << command;
    EXPECT_THAT(outcome.output, AllOf(HasSubstr("tokenizer"), HasSubstr(other_.string())))
        << command;
  }
  EXPECT_FALSE(fs::exists(scratch_ / "run2/checkpoints/stage2.h5"));

  // Copied over the training set's own.
  fs::copy_file(other_ / "tokenizer.model", set_ / "tokenizer.model",
                fs::copy_options::overwrite_existing);
  const Outcome outcome = orchard_alone(arguments(set_, "--resume"));
  EXPECT_NE(outcome.code, 0);
  EXPECT_THAT(outcome.output, HasSubstr((set_ / "tokenizer.model").string()));
}

}  // namespace
}  // namespace orchard::testing
