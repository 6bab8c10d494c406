// The recipes that come with the program: their models are as large as published, their numbers
// those of the papers, and none of them changes unnoticed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>

#include "data/atomic_file.h"
#include "launch/options.h"
#include "launch/parameter_counts.h"
#include "train/schedule.h"

namespace orchard {
namespace {

constexpr double million = 1e6, billion = 1e9;

ModelConfig model_of(const std::string& recipe) {
  ModelConfig model = load_recipe(recipe).model;
  if (model.decoder.vocabulary == 0) model.decoder.vocabulary = 2048;  // the demo's tokenizer
  return model;
}

void expect_near_fraction(std::int64_t count, double published, double fraction) {
  EXPECT_NEAR(static_cast<double>(count), published, published * fraction);
}

// Published totals have three or four digits: half of the last one is the tolerance.
TEST(Presets, TheVisionTowerIsClipViTH) {
  ModelConfig model = model_of("3b");
  EXPECT_EQ(model.vision.side, 378);
  EXPECT_NEAR(static_cast<double>(count_parameters(model).vision), 631.4 * million, 0.05 * million);
  model.vision.side = 672;
  EXPECT_NEAR(static_cast<double>(count_parameters(model).vision), 633.4 * million, 0.05 * million);
}

TEST(Presets, TheConnectorHasTheSizeOfHoneybees) {
  const auto connector = [](const std::string& recipe) {
    return static_cast<double>(count_parameters(model_of(recipe)).connector);
  };
  EXPECT_NEAR(connector("1b"), 24.8 * million, 0.05 * million);
  EXPECT_NEAR(connector("3b"), 31.1 * million, 0.05 * million);
  EXPECT_NEAR(connector("7b"), 39.4 * million, 0.05 * million);
}

TEST(Presets, TheDenseDecodersHaveTheirPublishedSizes) {
  const ParameterCounts three = count_parameters(model_of("3b"));
  EXPECT_NEAR(static_cast<double>(three.decoder), 2.587 * billion, 0.0005 * billion);
  EXPECT_NEAR(static_cast<double>(three.embedding), 0.151 * billion, 0.0005 * billion);
  const auto decoder_and_embedding = [](const std::string& recipe) {
    const ParameterCounts counts = count_parameters(model_of(recipe));
    return counts.decoder + counts.embedding;
  };
  expect_near_fraction(decoder_and_embedding("30b"), 30.3 * billion, 0.005);
  // "1B" and "7B" are names, not counts: the shapes must only round to them.
  expect_near_fraction(decoder_and_embedding("1b"), 1.2 * billion, 0.1);
  expect_near_fraction(decoder_and_embedding("7b"), 7.0 * billion, 0.1);
}

TEST(Presets, TheMixturesOfExpertsHaveTheirPublishedSizes) {
  const ParameterCounts three = count_parameters(model_of("3b-moe"));
  expect_near_fraction(three.total(), 64 * billion, 0.02);
  // 3.70B of the decoder is active for a token.
  expect_near_fraction(three.decoder + three.embedding - three.inactive, 3.70 * billion, 0.005);
  // About 27B, without the vision tower; the paper gives no count.
  const ParameterCounts one = count_parameters(model_of("1b-moe"));
  expect_near_fraction(one.decoder + one.embedding, 27 * billion, 0.02);
}

// MM1's 7B-MoE has 32 experts in every 4th layer and 47B parameters: the 7B recipe is its backbone.
TEST(Presets, TheSevenBillionBackboneCarriesThePublishedMixture) {
  ModelConfig model = model_of("7b");
  model.decoder.moe.experts = 32;
  model.decoder.moe.every = 4;
  const ParameterCounts counts = count_parameters(model);
  expect_near_fraction(counts.decoder + counts.embedding, 47 * billion, 0.01);
}

TEST(Presets, TheSmallOnesHaveTheSizesThatBenchmarksQuote) {
  EXPECT_NEAR(static_cast<double>(count_parameters(model_of("tiny")).total()), 24.8 * million,
              0.05 * million);
  const ParameterCounts moe = count_parameters(model_of("tiny-moe"));
  EXPECT_NEAR(static_cast<double>(moe.total()), 70.3 * million, 0.05 * million);
  EXPECT_NEAR(static_cast<double>(moe.active()), 31.3 * million, 0.05 * million);
}

TEST(Presets, TheBackboneOfTheLearningRateLawIsTheDenseDecoder) {
  for (const char* recipe : {"1b", "3b", "tiny"}) {
    const ModelConfig model = model_of(recipe);
    EXPECT_EQ(dense_backbone_parameters(model.decoder), count_parameters(model).decoder) << recipe;
  }
  EXPECT_EQ(dense_backbone_parameters(model_of("3b-moe").decoder),
            dense_backbone_parameters(model_of("3b").decoder));
}

TEST(Presets, TheStagesAreThoseOfThePaper) {
  for (const char* recipe : {"1b", "3b", "7b", "30b", "1b-moe", "3b-moe"}) {
    const RunConfig run = load_recipe(recipe);
    SCOPED_TRACE(recipe);
    ASSERT_EQ(run.stages.size(), 3u);
    const StageConfig &first = run.stages[0], &second = run.stages[1], &third = run.stages[2];
    EXPECT_EQ(first.steps, 200000);
    EXPECT_EQ(first.global_batch, 512);
    EXPECT_EQ(first.side, 378);
    EXPECT_EQ(first.tiling.mode, TilingMode::whole);
    EXPECT_EQ(first.optimizer.kind, OptimizerKind::adamw);
    EXPECT_EQ(first.peak_lr, 0);  // the law
    EXPECT_EQ(first.warmup, 2000);
    EXPECT_EQ(first.final_lr_fraction, 0.1);
    EXPECT_EQ(first.targets, TargetPolicy::text);
    EXPECT_EQ(second.steps, 30000);
    EXPECT_EQ(second.tiling.mode, TilingMode::fixed);
    EXPECT_EQ(second.peak_lr, 1e-5);
    EXPECT_EQ(second.targets, TargetPolicy::text);
    EXPECT_EQ(third.tiling.mode, TilingMode::dynamic);
    EXPECT_EQ(third.tiling.min_tiles, 4);
    EXPECT_EQ(third.tiling.max_tiles, 9);
    EXPECT_EQ(third.peak_lr, 2e-5);
    EXPECT_EQ(third.targets, TargetPolicy::assistant);
    for (const StageConfig* stage : {&second, &third}) {
      EXPECT_EQ(stage->global_batch, 256);
      EXPECT_EQ(stage->side, 672);
      EXPECT_EQ(stage->optimizer.kind, OptimizerKind::adafactor);
      EXPECT_EQ(stage->warmup, 100);
      EXPECT_EQ(stage->final_lr_fraction, 0);
      EXPECT_EQ(stage->marks, MarkStyle::index);
    }
    for (const StageConfig& stage : run.stages) EXPECT_EQ(stage.sequence_length, 4096);
    EXPECT_EQ(run.model.connector.tokens(), 144);
  }
}

TEST(Presets, TheMixturesUseThePapersWeights) {
  for (const char* recipe : {"1b-moe", "3b-moe", "tiny-moe", "nano-moe"}) {
    const MoeConfig moe = load_recipe(recipe).model.decoder.moe;
    EXPECT_EQ(moe.top_k, 2) << recipe;
    EXPECT_EQ(moe.every, 2) << recipe;
    EXPECT_EQ(moe.balance_weight, 0.01) << recipe;
    EXPECT_EQ(moe.z_weight, 0.001) << recipe;
    EXPECT_EQ(moe.capacity_factor, 0) << recipe;
  }
}

// Every value of every recipe, as text: a change of a default or of a shared base shows here. After
// a wanted change, REWRITE_GOLDENS=1 rewrites the files.
class Golden : public testing::TestWithParam<std::string> {};

TEST_P(Golden, TheResolvedRecipeIsTheCommittedOne) {
  const std::filesystem::path path = std::filesystem::path(ORCHARD_GOLDENS) / (GetParam() + ".txt");
  const std::string resolved =
      ResolvedRun({.recipe = GetParam()}).to_ini(ResolvedRun::Show::values);
  if (std::getenv("REWRITE_GOLDENS") != nullptr) std::ofstream(path) << resolved;
  EXPECT_EQ(resolved, read_text(path)) << path << ": if the change is wanted, run this test once "
                                       << "with REWRITE_GOLDENS=1 and read the difference";
}

INSTANTIATE_TEST_SUITE_P(Recipes, Golden,
                         testing::Values("1b", "3b", "7b", "30b", "1b-moe", "3b-moe", "nano-moe",
                                         "tiny", "tiny-moe"),
                         [](const auto& recipe) {
                           std::string name = recipe.param;
                           for (char& c : name) c = c == '-' ? '_' : c;
                           return name;
                         });

TEST(Presets, EveryRecipeThatComesWithTheProgramIsHere) {
  EXPECT_THAT(recipe_names(),
              testing::UnorderedElementsAre("1b", "1b-moe", "30b", "3b", "3b-moe", "7b", "mm15",
                                            "nano-moe", "tiny", "tiny-moe"));
}

}  // namespace
}  // namespace orchard
