// A checkpoint is asked on any ranks, whatever layout wrote it: eval, score and generate say on
// several ranks what they say on one.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <sstream>

#include "data/atomic_file.h"
#include "tests/data/corpus.h"
#include "tests/data/scratch.h"
#include "tests/launch/program.h"

namespace orchard::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using Json = nlohmann::json;

// Pictures, experts, and heads for two tensor ranks.
constexpr const char* recipe = R"([vision]
layers = 1
width = 16
heads = 2
mlp_width = 32
patch = 7
[connector]
hidden = 8
depth = 1
out_side = 2
[decoder]
layers = 2
hidden = 32
ffn = 64
heads = 4
kv_heads = 1
head_dim = 8
[moe]
experts = 4
every = 2
[stage1]
steps = 12
global_batch = 4
sequence_length = 128
side = 14
mixture = equal
peak_lr = 1e-2
)";

struct Layout {
  int ranks;
  const char* options;
};
constexpr Layout layouts[] = {
    {2, "--tp 2"},
    {4, "--ep 2"},  // replicas, of which two hold the experts together
    {4, "--tp 2 --ep 4 --tp-chunks 2"},
    {4, "--tp 2 --sequence-parallel no --ep 2 --etp 2 --moe-chunks 2"},
    {2, "--pp 2 --tp 1 --ep 1"},
    {4, "--pp 2 --schedule zb-v --tp 2 --ep 2"},
};

// One run, trained with tensor and expert ranks, for all tests.
class Asking : public ::testing::Test {
 protected:
  // The folder is called after the first test, so there is none before.
  void SetUp() override {
    if (scratch_) return;
    scratch_ = std::make_unique<Scratch>();
    write_file(*scratch_ / "small.ini", recipe);
    write_corpus(*scratch_ / "corpus");
    const Outcome packed = orchard_alone("pack " + (*scratch_ / "corpus").string() + " --out " +
                                         (*scratch_ / "set").string() + " --vocabulary 340");
    require(packed.code == 0, "{}", packed.output);
    const Outcome trained = run_on_ranks(
        4, fmt::format("{} train --recipe {} --training-set {} {} --tp 2 --ep 2 --micro-batch 1",
                       ORCHARD_PROGRAM, (*scratch_ / "small.ini").string(),
                       (*scratch_ / "set").string(), run_folder()));
    require(trained.code == 0, "{}", trained.output);
  }
  static void TearDownTestSuite() { scratch_.reset(); }

  static std::string run_folder() { return "--run-folder " + (*scratch_ / "run").string(); }
  static std::string ask(const std::string& command, const Layout& layout) {
    return answer_of(on_ranks(layout.ranks, fmt::format("{} {} {} {}", ORCHARD_PROGRAM, command,
                                                        run_folder(), layout.options)));
  }
  static std::string ask_alone(const std::string& command) {
    return answer_of(fmt::format("{} {} {}", ORCHARD_PROGRAM, command, run_folder()));
  }
  // What a command prints as its answer. The other stream says how far it is, where it takes long.
  static std::string answer_of(const std::string& command) {
    const std::string aside = (*scratch_ / "aside").string();
    const Outcome outcome = run_shell(fmt::format("{{ {} 2>{}; }}", command, aside));
    EXPECT_EQ(outcome.code, 0) << command << "\n" << outcome.output << read_text(aside);
    return outcome.output;
  }

  static inline std::unique_ptr<Scratch> scratch_;
};

// What the project promises of layouts in fp32.
constexpr double tolerance = 1e-5;

// Numbers within the tolerance of their size, everything else alike; the place of a difference.
std::string difference(const Json& a, const Json& b, const std::string& place = "") {
  if (a.is_number_float() && b.is_number_float()) {
    const double x = a.get<double>(), y = b.get<double>();
    const bool close = std::abs(x - y) <= tolerance * std::max(1.0, std::abs(y));
    return close ? "" : fmt::format("{}: {} is not {}\n", place, x, y);
  }
  if (a.type() != b.type() || a.size() != b.size() || (!a.is_structured() && a != b))
    return fmt::format("{}: {} is not {}\n", place, a.dump(), b.dump());
  std::string text;
  if (a.is_object()) {
    for (const auto& [key, value] : a.items())
      text += difference(value, b.value(key, Json()), fmt::format("{}/{}", place, key));
  } else if (a.is_array()) {
    for (std::size_t i = 0; i < a.size(); ++i)
      text += difference(a[i], b[i], fmt::format("{}/{}", place, i));
  }
  return text;
}

TEST_F(Asking, EvalOnRanksIsEvalOnOne) {
  const std::string command = "eval --json --answers 3 --longest-answer 8";
  Json alone = Json::parse(ask_alone(command));
  EXPECT_GT(alone.at("targets"), 0);
  // z divides a difference by its error: where pictures hardly matter yet, noise by noise.
  alone.at("swap").erase("z");
  for (const Layout& layout : std::span(layouts).subspan(3)) {  // score takes all, and less time
    Json asked = Json::parse(ask(command, layout));
    asked.at("swap").erase("z");
    EXPECT_EQ(difference(asked, alone), "") << layout.options;
  }
}

TEST_F(Asking, ScoreOnRanksIsScoreOnOne) {
  // More and fewer requests than replicas, with a picture, of one token; from standard input.
  std::string requests;
  for (int i = 0; i < 5; ++i)
    requests += fmt::format(R"({{"tokens": [1, {}, 21, {}, 9]}})", 30 + i, 40 + 7 * i) + "\n";
  requests += R"({"tokens": [1]})"
              "\n";
  requests += fmt::format(R"({{"tokens": [1, 4, 4, 4, 4, 50, 60], "images": ["{}"]}})",
                          (*scratch_ / "corpus/clipart/1.png").string()) +
              "\n";
  write_file(*scratch_ / "requests", requests);
  const std::string command = "score < " + (*scratch_ / "requests").string();
  const auto lines = [](const std::string& text) {
    Json all = Json::array();
    std::istringstream in(text);
    for (std::string line; std::getline(in, line);) all.push_back(Json::parse(line));
    return all;
  };
  const Json alone = lines(ask_alone(command));
  ASSERT_EQ(alone.size(), 7u);
  for (const Layout& layout : layouts)
    EXPECT_EQ(difference(lines(ask(command, layout)), alone), "") << layout.options;
}

TEST_F(Asking, GenerateOnRanksIsGenerateOnOne) {
  const std::string command = "generate 'a house' --plain --tokens 12";
  const std::string alone = ask_alone(command);
  for (const Layout& layout : std::span(layouts).subspan(2)) EXPECT_EQ(ask(command, layout), alone);
}

TEST_F(Asking, ALayoutThatIsImpossibleIsRefused) {
  const auto refused = [](int ranks, const std::string& options) {
    const Outcome outcome =
        run_on_ranks(ranks, fmt::format("{} eval {} {}", ORCHARD_PROGRAM, run_folder(), options));
    EXPECT_EQ(outcome.code, 78) << outcome.output;
    return outcome.output;
  };
  // The layout of the run, on fewer ranks than it needs; and one that was asked for.
  EXPECT_THAT(refused(3, ""), AllOf(HasSubstr("must divide the 3 ranks"), HasSubstr("nearest")));
  EXPECT_THAT(refused(1, "--tp 2"), HasSubstr("tp 2: there are only 1 ranks"));
}

}  // namespace
}  // namespace orchard::testing
