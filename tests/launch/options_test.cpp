#include "launch/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <optional>
#include <regex>

#include "data/atomic_file.h"
#include "launch/ini.h"
#include "launch/run_summary.h"
#include "launch/suggest.h"
#include "launch/validate.h"
#include "tests/data/scratch.h"

namespace orchard {
namespace {

using orchard::testing::message_of;
using orchard::testing::Scratch;
using ::testing::AllOf;
using ::testing::HasSubstr;

Setting given(const std::string& name, const std::string& value) {
  return {name, value, "command line"};
}

Setting inherited(const std::string& name, const std::string& value) {
  return {name, value, "the environment"};
}

// Sets a variable while it lives.
class Variable {
 public:
  Variable(const char* name, const char* value) : name_(name) { ::setenv(name, value, 1); }
  Variable(const Variable&) = delete;
  Variable& operator=(const Variable&) = delete;
  ~Variable() { ::unsetenv(name_); }

 private:
  const char* name_;
};

TEST(Options, TheEmulatedGpuRunsTheKernelsOfTheArchitectureAskedFor) {
  const ResolvedRun plain({.recipe = "tiny"});
  EXPECT_EQ(plain.config().simt_arch, GpuArch::sm_80);
  const ResolvedRun asked({.recipe = "tiny", .command_line = {given("run.simt_arch", "sm_90a")}});
  EXPECT_EQ(asked.config().simt_arch, GpuArch::sm_90a);
  EXPECT_THAT(asked.to_ini(ResolvedRun::Show::origins), HasSubstr("simt_arch = sm_90a"));
  EXPECT_THAT(message_of([] {
                ResolvedRun({.recipe = "tiny", .command_line = {given("run.simt_arch", "sm_70")}});
              }),
              AllOf(HasSubstr("run.simt_arch"), HasSubstr("sm_80 | sm_90a")));
}

TEST(Precedence, CommandLineThenEnvironmentThenRecipeThenDefault) {
  const Scratch folder;
  const std::filesystem::path recipe = folder / "mine.ini";
  write_file(recipe,
             "[recipe]\nbase = tiny\n[run]\nseed = 2\nmicro_batch = 2\nvalidate_every = 2\n");
  const ResolvedRun run(
      {.recipe = recipe.string(),
       .environment = {inherited("run.seed", "3"), inherited("run.micro_batch", "4")},
       .command_line = {given("run.seed", "5")}});
  EXPECT_EQ(run.config().seed, 5u);
  EXPECT_EQ(run.config().micro_batch, 4);
  EXPECT_EQ(run.config().validate_every, 2);
  EXPECT_EQ(run.config().model.decoder.layers, 7);  // the base
  EXPECT_EQ(run.config().keep_checkpoints, 2);      // the default
  EXPECT_EQ(run.describe("run.seed"), "run.seed = 5 (command line)");
  EXPECT_EQ(run.describe("run.micro_batch"), "run.micro_batch = 4 (the environment)");
  EXPECT_EQ(run.describe("run.validate_every"), "run.validate_every = 2 (mine.ini:6)");
  EXPECT_THAT(run.describe("decoder.layers"), HasSubstr("decoder.layers = 7 (tiny.ini:"));
  EXPECT_EQ(run.describe("run.keep_checkpoints"), "run.keep_checkpoints = 2 (default)");
  EXPECT_THAT(run.to_ini(ResolvedRun::Show::origins), HasSubstr("# mine.ini:6\n"));
}

TEST(Precedence, OfTwoOnTheCommandLineTheLaterWins) {
  const ResolvedRun run(
      {.recipe = "tiny", .command_line = {given("run.seed", "5"), given("run.seed", "6")}});
  EXPECT_EQ(run.config().seed, 6u);
}

TEST(Environment, AVariableIsCalledLikeItsOption) {
  const Variable peak("ORCHARD_STAGE1_PEAK_LR", "0.5");
  const std::vector<Setting> settings = environment_settings();
  ASSERT_EQ(settings.size(), 1u);
  EXPECT_EQ(settings[0].name, "stage1.peak_lr");
  EXPECT_EQ(settings[0].value, "0.5");
  EXPECT_EQ(settings[0].origin, "ORCHARD_STAGE1_PEAK_LR");
}

TEST(Environment, AMisspeltVariableIsAnErrorThatNamesTheNearest) {
  const Variable peak("ORCHARD_STAGE1_PEEK_LR", "0.5");
  EXPECT_THAT(message_of([] { environment_settings(); }),
              AllOf(HasSubstr("ORCHARD_STAGE1_PEEK_LR"),
                    HasSubstr("did you mean ORCHARD_STAGE1_PEAK_LR?")));
}

// A recipe of all three stages whose numbers the tests below know.
constexpr const char* small_recipe = R"([run]
micro_batch = 8
[vision]
layers = 3
width = 128
heads = 4
mlp_width = 512
[connector]
hidden = 96
out_side = 4
[decoder]
layers = 4
hidden = 192
ffn = 512
heads = 4
kv_heads = 2
head_dim = 48
[moe]
experts = 8
[stage1]
steps = 200
global_batch = 16
sequence_length = 512
side = 112
mixture = stage1
peak_lr = 1e-3
[stage2]
steps = 60
global_batch = 16
sequence_length = 512
side = 224
tiling = fixed
mixture = stage2
[stage3]
steps = 60
global_batch = 16
sequence_length = 512
side = 224
tiling = dynamic
mixture = all
)";

std::string message_with(const Setting& setting) {
  const Scratch folder;
  write_file(folder / "small.ini", small_recipe);
  return message_of([&] {
    ResolvedRun run({.recipe = (folder / "small.ini").string(), .command_line = {setting}});
  });
}

TEST(UnknownOption, TheNearestIsSuggested) {
  EXPECT_THAT(message_with(given("stage1.peek_lr", "1")),
              AllOf(HasSubstr("command line: there is no option stage1.peek_lr"),
                    HasSubstr("did you mean stage1.peak_lr?")));
  EXPECT_THAT(message_with(given("decoder.lyaers", "1")),
              HasSubstr("did you mean decoder.layers?"));
  EXPECT_THAT(message_with(given("model.layers", "1")),
              HasSubstr("did you mean vision.layers or decoder.layers?"));
  EXPECT_THAT(message_with(given("completely.else", "1")),
              ::testing::Not(HasSubstr("did you mean")));
}

TEST(UnknownOption, InARecipeFileAndLineAreNamed) {
  const Scratch folder;
  write_file(folder / "mine.ini", "[recipe]\nbase = tiny\n\n[stage1]\nstepz = 3\n");
  EXPECT_THAT(
      message_of([&] { load_recipe((folder / "mine.ini").string()); }),
      AllOf(HasSubstr("mine.ini:5: there is no option stage1.stepz"), HasSubstr("stage1.steps")));
}

TEST(BadValue, TheOptionItsValueItsOriginAndTheRuleAreNamed) {
  EXPECT_EQ(message_with(given("stage1.peak_lr", "-1")),
            "stage1.peak_lr = -1 (command line): must be a number of at least 0");
  EXPECT_EQ(message_with(given("run.seed", "7x")),
            "run.seed = 7x (command line): must be a whole number of at least 0");
  EXPECT_EQ(message_with(given("run.dtype", "fp16")),
            "run.dtype = fp16 (command line): must be f32 | bf16");
  for (const char* value : {"", " 1", "1 ", "1.5", "0x10", "99999999999999999999"}) {
    EXPECT_THAT(message_with(given("decoder.layers", value)), HasSubstr("must be a whole number"))
        << value;
  }
  for (const char* value : {"", "nan", "inf", "1e999", "0", "ten"}) {
    EXPECT_THAT(message_with(given("decoder.rope_theta", value)),
                HasSubstr("must be a number above 0"))
        << value;
  }
  EXPECT_THAT(message_with(given("run.run_folder", "a #b")), HasSubstr("line breaks"));
}

struct Misfit {
  const char* name;
  const char* value;
  const char* rule;
};

class OptionsThatDoNotFit : public ::testing::TestWithParam<Misfit> {};

TEST_P(OptionsThatDoNotFit, AreAnErrorThatNamesBoth) {
  const Misfit& misfit = GetParam();
  EXPECT_THAT(message_with(given(misfit.name, misfit.value)),
              AllOf(HasSubstr(fmt::format("{} = {} (command line): ", misfit.name, misfit.value)),
                    HasSubstr(misfit.rule)));
}

INSTANTIATE_TEST_SUITE_P(
    Rules, OptionsThatDoNotFit,
    ::testing::Values(
        Misfit{"stage1.side", "113", "must be a multiple of vision.patch = 14 (default)"},
        Misfit{"stage1.side", "42", "gives 3 patches a side, too few for connector.out_side = 4"},
        Misfit{"stage2.sequence_length", "80", "5 tiles of 16 rows, 80 in all"},
        Misfit{"stage3.sequence_length", "160", "10 tiles of 16 rows, 160 in all"},
        Misfit{"stage3.min_tiles", "10", "must be at most stage3.max_tiles = 9"},
        Misfit{"stage2.global_batch", "0", "must be"},
        Misfit{"stage1.warmup", "100000", "longer than the stage, stage1.steps"},
        Misfit{"stage3.mixture", "everything", "there is no mixture 'everything'"},
        Misfit{"stage1.beta2", "1", "below 1"},
        Misfit{"decoder.heads", "5", "must be a multiple of decoder.kv_heads = 2"},
        Misfit{"decoder.head_dim", "47", "must be even"},
        Misfit{"decoder.layers", "0", "must be positive"},
        Misfit{"decoder.vocabulary", "8", "too small for the special tokens"},

        Misfit{"moe.every", "5", "no layer would be sparse with decoder.layers = 4"},
        Misfit{"connector.hidden", "0", "must be positive"}));

TEST(Ranks, TheGlobalBatchMustDivideEvenly) {
  const ResolvedRun run({.recipe = "tiny"});  // 32 sequences, at most 8 a forward pass
  for (const int ranks : {1, 2, 4, 8, 16, 32}) EXPECT_NO_THROW(validate_ranks(run, ranks));
  EXPECT_THAT(message_of([&] { validate_ranks(run, 3); }),
              AllOf(HasSubstr("stage1.global_batch = 32"), HasSubstr("3 ranks"),
                    HasSubstr("nearest possible layout of 3 ranks is tp 1, pp 3")));
}

// As many ranks as sequences, though its micro-batches are of 4 on few.
TEST(Ranks, MicroBatchesShrinkWithTheShareOfAReplica) {
  const ResolvedRun run({.recipe = "nano-moe"});
  for (const int ranks : {1, 2, 4, 8}) EXPECT_NO_THROW(validate_ranks(run, ranks)) << ranks;
  const RunConfig config = run.config();
  EXPECT_THAT(run_summary(config, 1), HasSubstr("2 micro-batches of 4 sequences a replica"));
  EXPECT_THAT(run_summary(config, 4), HasSubstr("1 micro-batches of 2 sequences a replica"));
  EXPECT_THAT(run_summary(config, 8), HasSubstr("1 micro-batches of 1 sequences a replica"));
}

TEST(Ranks, TheLayoutMustBePossible) {
  const auto message = [](const std::vector<Setting>& settings, int ranks) {
    const ResolvedRun run({.recipe = "tiny", .command_line = settings});
    return message_of([&] { validate_ranks(run, ranks); });
  };
  EXPECT_EQ(message({given("layout.tp", "2")}, 2), "");
  EXPECT_EQ(message({given("layout.tp", "2")}, 8), "");  // four replicas
  EXPECT_THAT(message({given("layout.tp", "2")}, 3), HasSubstr("must divide the 3 ranks"));
  EXPECT_THAT(message({given("layout.tp", "2")}, 1), HasSubstr("there are only 1 ranks"));
  EXPECT_THAT(message({given("layout.tp", "16")}, 16),
              AllOf(HasSubstr("tp 16"), HasSubstr("heads"), HasSubstr("nearest possible layout")));
  EXPECT_THAT(message({given("layout.ep", "2")}, 2), HasSubstr("no experts"));
  EXPECT_EQ(message({given("layout.tp", "2")}, 16), "");  // of 4 sequences
  EXPECT_THAT(message({given("layout.tp", "2")}, 6),
              AllOf(HasSubstr("stage1.global_batch = 32"), HasSubstr("layout.tp = 2")));
  EXPECT_THAT(
      message_of([] {
        ResolvedRun({.recipe = "tiny", .command_line = {given("layout.order", "tp-dp-pp")}});
      }),
      HasSubstr("each once"));
}

TEST(Ranks, GraphsAreRefusedWhereTheHostTakesPartInMessages) {
  const auto message = [](std::vector<Setting> settings, int ranks) {
    settings.push_back(given("run.graphs", "yes"));
    const ResolvedRun run({.recipe = "tiny-moe", .command_line = settings});
    return message_of([&] { validate_ranks(run, ranks); });
  };
  const Setting on_gpus = given("run.device", "simt"), capacity = given("moe.capacity_factor", "1");
  EXPECT_EQ(message({}, 1), "");
  EXPECT_EQ(message({}, 2), "");  // replicas
  EXPECT_EQ(message({on_gpus, given("layout.tp", "2")}, 2), "");
  EXPECT_THAT(message({on_gpus, given("layout.pp", "2")}, 2),
              AllOf(HasSubstr("run.graphs = yes"), HasSubstr("layout.pp = 2"),
                    HasSubstr("graphs hold no messages of pipelines")));
  for (const char* option : {"layout.ep", "layout.etp"}) {
    const Setting apart = given(option, "2");
    EXPECT_EQ(message({on_gpus, capacity, apart}, 2), "");
    EXPECT_THAT(message({on_gpus, apart}, 2),
                AllOf(HasSubstr("run.graphs = yes"), HasSubstr(fmt::format("{} = 2", option)),
                      HasSubstr("unless they have a capacity: moe.capacity_factor = 0")));
    EXPECT_THAT(message({on_gpus, capacity, apart, given("layout.moe_messages", "counted")}, 2),
                AllOf(HasSubstr("the host reads how many rows"),
                      HasSubstr("layout.moe_messages = counted")));
    EXPECT_THAT(message({on_gpus, capacity, apart, given("layout.tp", "2")}, 2),
                AllOf(HasSubstr("not both"), HasSubstr("layout.tp = 2"),
                      HasSubstr(fmt::format("{} = 2", option))));
    EXPECT_THAT(message({capacity, apart}, 2),
                AllOf(HasSubstr("host memory"), HasSubstr("run.device = cpu")));
    EXPECT_THAT(message({on_gpus, capacity, apart, given("run.transport", "host")}, 2),
                AllOf(HasSubstr("host memory"), HasSubstr("run.transport = host")));
  }
}

// The layout that a refusal of `settings` proposes; nothing where it proposes none.
std::optional<std::vector<Setting>> proposal(const std::string& message) {
  static const std::regex nearest(
      "nearest possible layout of \\d+ ranks is tp (\\d+), pp (\\d+), ep (\\d+), etp (\\d+), "
      "order ([a-z-]+)(, tp-chunks (\\d+))?");
  std::smatch found;
  if (!std::regex_search(message, found, nearest)) return {};
  return std::vector<Setting>{given("layout.tp", found[1]),
                              given("layout.pp", found[2]),
                              given("layout.ep", found[3]),
                              given("layout.etp", found[4]),
                              given("layout.order", found[5]),
                              given("layout.tp_chunks", found[7].matched ? found.str(7) : "1")};
}

// Whatever is refused, and by whichever rule, what the refusal proposes is taken. Both stages' batches
// count, and so does a vocabulary that only the training set tells.
TEST(Ranks, TheNearestLayoutIsAccepted) {
  const Scratch folder;
  write_file(folder / "small.ini", small_recipe);
  const std::vector<Setting> recipe{given("stage2.global_batch", "12"),
                                    given("decoder.vocabulary", "0")};
  constexpr std::int64_t vocabulary = 1002;  // which 4 does not divide
  int proposed = 0, of_batches = 0, of_vocabulary = 0;
  for (int ranks = 1; ranks <= 12; ++ranks) {
    for (const int tp : {1, 2, 3, 4}) {
      for (const int pp : {1, 2, 3}) {
        for (const int chunks : {1, 4}) {
          const auto run_with = [&](const std::vector<Setting>& layout) {
            std::vector<Setting> all = recipe;
            all.push_back(given("layout.schedule", "interleaved"));
            all.push_back(given("layout.pipeline_chunks", std::to_string(chunks)));
            all.insert(all.end(), layout.begin(), layout.end());
            return ResolvedRun(
                {.recipe = (folder / "small.ini").string(), .command_line = std::move(all)});
          };
          const auto refusal = [&](const ResolvedRun& run) {
            return message_of([&] {
              validate_ranks(run, ranks);
              validate_vocabulary(run, vocabulary, ranks);
            });
          };
          std::vector<Setting> asked{given("layout.tp", std::to_string(tp)),
                                     given("layout.pp", std::to_string(pp)),
                                     given("layout.tp_chunks", tp > 1 ? "60" : "1")};
          // The layout proposed may miss only what was not known when it was: the vocabulary.
          for (int tries = 0; tries < 2; ++tries) {
            const std::string message = refusal(run_with(asked));
            const auto nearest = proposal(message);
            if (!nearest) break;
            ++proposed;
            of_batches += message.find("global_batch") != message.npos;
            of_vocabulary += message.find("vocabulary") != message.npos;
            EXPECT_EQ(message_of([&] { validate_ranks(run_with(*nearest), ranks); }), "")
                << message;
            if (message.find("vocabulary") != message.npos) {
              EXPECT_EQ(refusal(run_with(*nearest)), "") << message;
            }
            asked = *nearest;
          }
        }
      }
    }
  }
  EXPECT_GT(proposed, 50);
  EXPECT_GT(of_batches, 5);
  EXPECT_GT(of_vocabulary, 0);
}

TEST(Vocabulary, TheTokenizersMustFit) {
  const ResolvedRun fixed({.recipe = "tiny"});
  EXPECT_NO_THROW(validate_vocabulary(fixed, 8192, 1));
  EXPECT_THAT(message_of([&] { validate_vocabulary(fixed, 8193, 1); }),
              AllOf(HasSubstr("decoder.vocabulary = 8192 (tiny.ini:"), HasSubstr("8193")));
  const ResolvedRun open({.recipe = "tiny", .command_line = {given("decoder.vocabulary", "0")}});
  EXPECT_NO_THROW(validate_vocabulary(open, 8193, 1));
  const ResolvedRun cut(
      {.recipe = "tiny",
       .command_line = {given("decoder.vocabulary", "0"), given("layout.tp", "2")}});
  EXPECT_NO_THROW(validate_vocabulary(cut, 8192, 2));
  EXPECT_THAT(message_of([&] { validate_vocabulary(cut, 8193, 2); }),
              AllOf(HasSubstr("tp 2"), HasSubstr("vocabulary"), HasSubstr("8193"),
                    HasSubstr("nearest possible layout")));
  EXPECT_NO_THROW(validate_pictures(open, 0));
  EXPECT_THAT(message_of([&] { validate_pictures(open, 1); }),
              AllOf(HasSubstr("vision.layers = 0"), HasSubstr("holds 1 pictures")));
}

// Both the trainer's view and every printed value must survive, so that a run folder's resolved.ini
// repeats the run.
TEST(ResolvedIni, RunsAreTheSameWhenReadBack) {
  const Scratch folder;
  write_file(folder / "small.ini", small_recipe);
  const ResolvedRun run(
      {.recipe = (folder / "small.ini").string(),
       .command_line = {given("stage1.peak_lr", "0.1234567890123456"),
                        given("run.run_folder", "runs/with space"), given("stage2.steps", "0")}});
  for (const auto show : {ResolvedRun::Show::values, ResolvedRun::Show::origins}) {
    const std::filesystem::path path = folder / "resolved.ini";
    write_file(path, run.to_ini(show));
    const ResolvedRun again({.recipe = path.string()});
    EXPECT_EQ(again.to_ini(ResolvedRun::Show::values), run.to_ini(ResolvedRun::Show::values));
    EXPECT_EQ(again.config().stages.size(), 2u);
    EXPECT_EQ(again.config().stages[0].peak_lr, 0.1234567890123456);
    EXPECT_EQ(again.config().run_folder, "runs/with space");
  }
}

TEST(Config, WhatFollowsFromTheStagesIsFilledIn) {
  const RunConfig run = load_recipe("3b");
  EXPECT_EQ(run.model.vision.side, 378);
  EXPECT_EQ(run.model.decoder.max_positions, 4096);
  EXPECT_EQ(run.stages[2].tiling.side, 672);
  EXPECT_NO_THROW(run.model.validate());
}

// An option that reads into another option's field, or prints another's, would pass every test of
// single options.
TEST(Options, EachFillsItsOwnFieldOnly) {
  for (const RunOption& option : run_options()) {
    RunConfig run = default_run();
    const std::string before = option.print(run);
    std::string value;
    for (const char* candidate :
         {"3",         "4",           "0.25",        "simt",   "bf16",       "last",
          "blocks",    "all_choices", "fixed",       "fit",    "separators", "assistant",
          "adafactor", "no",          "dp-tp-ep-pp", "direct", "gpipe",      "measured",
          "counted",   "sm_90a",      "host",        "yes"}) {
      if (candidate == before || !option.read(run, candidate)) continue;
      value = candidate;
      break;
    }
    ASSERT_FALSE(value.empty()) << option.name;
    EXPECT_EQ(option.print(run), value) << option.name;
    EXPECT_NE(value, before) << option.name;
    for (const RunOption& other : run_options()) {
      if (other.name == option.name) continue;
      EXPECT_EQ(other.print(run), other.print(default_run())) << option.name << ", " << other.name;
    }
  }
}

TEST(Recipes, AMissingOneListsThoseThereAre) {
  EXPECT_THAT(message_of([] { load_recipe("nano-mo"); }),
              AllOf(HasSubstr("there is no recipe nano-mo"), HasSubstr("did you mean nano-moe?"),
                    HasSubstr("3b-moe")));
  EXPECT_THAT(message_of([] { load_recipe("./absent.ini"); }), HasSubstr("absent.ini"));
}

TEST(Recipes, ABaseOfItselfIsAnError) {
  const Scratch folder;
  write_file(folder / "a.ini", "[recipe]\nbase = b.ini\n");
  write_file(folder / "b.ini", "[recipe]\nbase = a.ini\n");
  EXPECT_THAT(message_of([&] { load_recipe((folder / "a.ini").string()); }),
              HasSubstr("a base of itself"));
}

TEST(Ini, SectionsKeysAndComments) {
  const auto entries = parse_ini(
      "# a comment\r\n[a]\r\nx=1\n  y  =  two words # and a comment\n\n[b-c]\nx = p#q\nz =\n",
      "text");
  ASSERT_EQ(entries.size(), 4u);
  EXPECT_EQ(entries[0].name, "a.x");
  EXPECT_EQ(entries[0].value, "1");
  EXPECT_EQ(entries[0].line, 3);
  EXPECT_EQ(entries[1].value, "two words");
  EXPECT_EQ(entries[2].name, "b-c.x");
  EXPECT_EQ(entries[2].value, "p#q");
  EXPECT_EQ(entries[3].value, "");
  EXPECT_EQ(entries[3].line, 8);
}

TEST(Ini, ABadLineIsNamed) {
  const auto message = [](const char* text) {
    return message_of([&] { parse_ini(text, "file.ini"); });
  };
  EXPECT_THAT(message("[a]\n\nnonsense\n"), HasSubstr("file.ini:3: \"nonsense\""));
  EXPECT_THAT(message("[a\nx = 1\n"), HasSubstr("file.ini:1: \"[a\" is not a section"));
  EXPECT_THAT(message("["), HasSubstr("is not a section"));
  EXPECT_THAT(message("x = 1\n"), HasSubstr("file.ini:1: x stands before the first [section]"));
  EXPECT_THAT(message("[a]\nx = 1\n[b]\n[a]\nx = 2\n"),
              HasSubstr("file.ini:5: a.x is given again, after line 2"));
  EXPECT_THAT(message("[a]\n= 1\n"), HasSubstr("file.ini:2"));
}

TEST(Assignment, NeedsANameAndAnEqualsSign) {
  EXPECT_EQ(parse_assignment("a.b=c=d").value, "c=d");
  EXPECT_THAT(message_of([] { parse_assignment("a.b"); }), HasSubstr("section.key=value"));
  EXPECT_THAT(message_of([] { parse_assignment("=1"); }), HasSubstr("section.key=value"));
}

TEST(Errors, OfOptionsAreConfigurationErrors) {
  EXPECT_THROW(load_recipe("absent"), ConfigurationError);
  EXPECT_THROW(ResolvedRun({.recipe = "tiny", .command_line = {given("run.seed", "x")}}),
               ConfigurationError);
  EXPECT_THROW(ResolvedRun({.recipe = "tiny", .command_line = {given("decoder.heads", "5")}}),
               ConfigurationError);
}

}  // namespace
}  // namespace orchard
