// Shares of categories and what is drawn from them.
#include "data/mixture.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <numeric>

#include "kernels/core/error.h"

namespace orchard {
namespace {

using ::testing::HasSubstr;

struct TrainingSet {
  TrainingSetIndex index;
  std::vector<std::int64_t> samples;
};

TrainingSet training_set(const std::vector<std::pair<std::string, int>>& sizes) {
  TrainingSet set;
  for (const auto& [name, size] : sizes) {
    set.index.categories.push_back(name);
    for (int i = 0; i < size; ++i) {
      set.samples.push_back(static_cast<std::int64_t>(set.index.samples.size()));
      set.index.samples.push_back(
          {.category = static_cast<std::int32_t>(set.index.categories.size()) - 1,
           .token_count = 3});
    }
  }
  return set;
}

std::map<std::string, double> percent(const ResolvedMixture& mixture) {
  std::map<std::string, double> shares;
  for (const ResolvedGroup& group : mixture.groups) {
    for (const ResolvedCategory& category : group.categories) {
      shares[category.name] = 100 * group.share * category.share;
    }
  }
  return shares;
}

ResolvedMixture resolve_named(std::string_view name, const TrainingSet& set) {
  return resolve(named_mixture(name, set.index.categories), set.index, set.samples);
}

const std::vector<std::pair<std::string, int>> all_categories{
    {"general", 1000}, {"text_rich", 3300}, {"refer_ground", 40}, {"science", 9},
    {"math", 700},     {"code", 2000},      {"multi_image", 5},   {"text_only", 10000}};

TEST(Mixture, FinalStageThreeSharesAreThePublishedOnes) {
  const ResolvedMixture mixture = resolve_named("all", training_set(all_categories));
  const auto share = percent(mixture);
  // Published to one decimal: half a unit of the last place.
  EXPECT_NEAR(share.at("text_rich"), 37.2, 0.05);
  EXPECT_NEAR(share.at("refer_ground"), 22.5, 0.05);
  EXPECT_NEAR(share.at("general"), 11.3, 0.05);
  EXPECT_NEAR(share.at("math"), 5.6, 0.05);
  EXPECT_NEAR(share.at("code"), 2.3, 0.05);
  EXPECT_NEAR(share.at("science"), 1.1, 0.05);
  EXPECT_NEAR(share.at("multi_image"), 10, 1e-9);
  EXPECT_NEAR(share.at("text_only"), 10, 1e-9);
  EXPECT_TRUE(mixture.warnings.empty());
}

TEST(Mixture, NamedMixturesOfStageThreeDifferInWhatTheyName) {
  const TrainingSet set = training_set(all_categories);
  const auto base = percent(resolve_named("base", set));
  EXPECT_EQ(base.size(), 5u);
  EXPECT_NEAR(base.at("general"), 100 / (1 + 3.3 + 0.1 + 0.5 + 0.2), 1e-9);
  const auto single = percent(resolve_named("single_image", set));
  EXPECT_EQ(single.size(), 6u);
  EXPECT_NEAR(single.at("refer_ground"), 200 / 7.1, 1e-9);
}

TEST(Mixture, StageOneIsFiftyTenForty) {
  const TrainingSet set = training_set({{"text", 7}, {"caption", 3}, {"interleaved", 100}});
  const ResolvedMixture mixture = resolve_named("stage1", set);
  EXPECT_EQ(mixture.unit, MixingUnit::sequence);
  const auto share = percent(mixture);
  EXPECT_NEAR(share.at("caption"), 50, 1e-9);
  EXPECT_NEAR(share.at("interleaved"), 10, 1e-9);
  EXPECT_NEAR(share.at("text"), 40, 1e-9);
}

TEST(Mixture, StageTwoGivesEveryOcrDatasetTheSame) {
  const TrainingSet set = training_set({{"ocr_a", 1}, {"ocr_b", 99}, {"text", 5}});
  const auto share = percent(resolve_named("stage2", set));
  EXPECT_EQ(share.size(), 2u);
  for (const char* name : {"ocr_a", "ocr_b"}) EXPECT_NEAR(share.at(name), 50, 1e-9);
  const auto all = percent(resolve_named("equal", set));
  for (const char* name : {"ocr_a", "ocr_b", "text"}) EXPECT_NEAR(all.at(name), 100.0 / 3, 1e-9);
}

TEST(Mixture, StageOneGathersCaptionsBySize) {
  const TrainingSet set = training_set(
      {{"caption_words", 30}, {"caption_clipart", 10}, {"text", 5}, {"interleaved", 1}});
  const ResolvedMixture mixture = resolve_named("stage1", set);
  EXPECT_NEAR(percent(mixture).at("caption"), 50, 1e-9);
  EXPECT_EQ(mixture.groups[0].categories[0].samples.size(), 40u);
  EXPECT_TRUE(mixture.warnings.empty());
}

TEST(Mixture, AnAbsentGroupIsDroppedWithAWarning) {
  const ResolvedMixture mixture =
      resolve_named("stage1", training_set({{"caption", 3}, {"text", 7}}));
  const auto share = percent(mixture);
  EXPECT_NEAR(share.at("caption"), 500.0 / 9, 1e-9);
  EXPECT_NEAR(share.at("text"), 400.0 / 9, 1e-9);
  EXPECT_THAT(mixture.report(), HasSubstr("group interleaved"));
}

TEST(Mixture, AnAbsentCategoryLeavesItsGroupItsWeight) {
  const ResolvedMixture mixture =
      resolve_named("all", training_set({{"general", 10}, {"math", 10}, {"text_only", 1}}));
  const auto share = percent(mixture);
  EXPECT_NEAR(share.at("general"), 100 * (8.0 / 9) / 1.5, 1e-9);
  EXPECT_NEAR(share.at("math"), 100 * (8.0 / 9) / 3, 1e-9);
  EXPECT_NEAR(share.at("text_only"), 100.0 / 9, 1e-9);
  EXPECT_THAT(mixture.report(), HasSubstr("category text_rich"));
}

TEST(Mixture, WithoutTheUnitCategoryNaturalWeightsCountInThemselves) {
  const auto share = percent(
      resolve_named("single_image", training_set({{"text_rich", 5}, {"refer_ground", 70}})));
  EXPECT_NEAR(share.at("text_rich"), 100.0 / 3, 1e-9);
  EXPECT_NEAR(share.at("refer_ground"), 200.0 / 3, 1e-9);
}

TEST(Mixture, MembersJoinACategory) {
  const TrainingSet set = training_set({{"ocr_lines", 20}, {"ocr_words", 10}, {"caption", 10}});
  Mixture mixture = named_mixture("base", set.index.categories);
  add_members(mixture, "text_rich", std::vector<std::string>{"ocr_lines", "ocr_words"});
  add_members(mixture, "general", std::vector<std::string>{"caption"});
  const ResolvedMixture resolved = resolve(mixture, set.index, set.samples);
  const auto share = percent(resolved);
  EXPECT_NEAR(share.at("text_rich"), 75, 1e-9);
  EXPECT_NEAR(share.at("general"), 25, 1e-9);
  EXPECT_EQ(resolved.groups[0].categories[1].samples.size(), 30u);
}

TEST(Mixture, CategoriesOutsideAreReported) {
  const ResolvedMixture mixture = resolve_named("base", training_set({{"general", 2}, {"odd", 7}}));
  EXPECT_THAT(mixture.report(), HasSubstr("not in this mixture: odd (7 samples)"));
}

TEST(Mixture, MistakesAreNamed) {
  const TrainingSet set = training_set({{"a", 1}});
  EXPECT_THROW(named_mixture("stage3", set.index.categories), Error);
  EXPECT_THROW(resolve_named("all", set), Error);
  Mixture mixture = named_mixture("base", set.index.categories);
  EXPECT_THROW(add_members(mixture, "generel", std::vector<std::string>{"a"}), Error);
  add_members(mixture, "general", std::vector<std::string>{"a"});
  add_members(mixture, "math", std::vector<std::string>{"a"});
  EXPECT_THROW(resolve(mixture, set.index, set.samples), Error);
  mixture = named_mixture("equal", set.index.categories);
  mixture.groups[0].weight = -1;
  EXPECT_THROW(resolve(mixture, set.index, set.samples), Error);
}

}  // namespace
}  // namespace orchard
