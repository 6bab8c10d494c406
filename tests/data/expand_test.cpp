// Tokens to rows and targets on samples written by hand.
#include "data/expand.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/core/error.h"
#include "tests/data/planning.h"

namespace orchard::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// The role of each token by a letter: d, u, a.
Sample sample_of(std::vector<std::int32_t> tokens, std::string_view roles) {
  Sample sample;
  sample.tokens = std::move(tokens);
  for (const char role : roles) {
    sample.roles.push_back(role == 'd'   ? Role::document
                           : role == 'u' ? Role::user
                                         : Role::assistant);
  }
  return sample;
}

// An index of this one sample, whose pictures are squares.
TrainingSetIndex index_of(const Sample& sample) {
  SampleShape shape{.text_tokens = 0};
  for (const std::int32_t token : sample.tokens) {
    if (token == token_image) {
      shape.pictures.push_back({10, 10});
    } else {
      ++shape.text_tokens;
    }
  }
  for (const Role role : sample.roles) shape.assistant_tokens += role == Role::assistant;
  return make_index({"a"}, {shape});
}

SampleRows expand(const Sample& sample, const PackingOptions& options, MarkStyle style,
                  std::int64_t first_visual_row = 0) {
  const TrainingSetIndex index = index_of(sample);
  const SampleLayout layout(index, options,
                            make_mark_table(style, characters, options.tiling, index));
  return expand_sample(sample, 0, 0, first_visual_row, layout);
}

constexpr std::int32_t begin = token_begin, end = token_end, image = token_image;

TEST(Expand, EveryTextTokenButTheFirstIsATarget) {
  const SampleRows rows =
      expand(sample_of({begin, 100, 101, end}, "dddd"), {.length = 16}, MarkStyle::index);
  EXPECT_THAT(rows.sources, ElementsAre(begin, 100, 101, end));
  EXPECT_THAT(rows.targets, ElementsAre(100, 101, end, -1));
  EXPECT_EQ(rows.target_count, 3);
}

TEST(Expand, VisualRowsPredictTheTextThatFollowsThem) {
  const SampleRows rows = expand(sample_of({begin, 100, image, 101, end}, "ddddd"),
                                 {.length = 16, .tokens_per_tile = 2}, MarkStyle::none);
  EXPECT_THAT(rows.sources, ElementsAre(begin, 100, -1, -2, 101, end));
  EXPECT_THAT(rows.targets, ElementsAre(100, -1, -1, 101, end, -1));
}

TEST(Expand, MarksAreInputAndNeverTargets) {
  const SampleRows rows =
      expand(sample_of({begin, image, image, 101}, "dddd"),
             {.length = 64, .tokens_per_tile = 1, .tiling = {.mode = TilingMode::fixed}},
             MarkStyle::separators, 7);
  // Each picture: tile , tile newline tile , tile : overview.
  EXPECT_THAT(rows.sources, ElementsAre(begin, -8, ',', -9, '\n', -10, ',', -11, ':', -12, -13, ',',
                                        -14, '\n', -15, ',', -16, ':', -17, 101));
  std::vector<std::int32_t> targets(20, -1);
  targets[18] = 101;
  EXPECT_EQ(rows.targets, targets);
}

TEST(Expand, OnlyAnswersAndTheirEndAreTargetsInStageThree) {
  // <|user|> q image <|end|> <|assistant|> a a <|end|> <|user|> q <|end|> <|assistant|> a <|end|>
  // end
  const Sample chat = sample_of(
      {begin, token_user, 100, image, token_turn_end, token_assistant, 200, 201, token_turn_end,
       token_user, 101, token_turn_end, token_assistant, 202, token_turn_end, end},
      "duuuuuaaauuuuaad");
  const SampleRows rows =
      expand(chat, {.length = 64, .tokens_per_tile = 1, .targets = TargetPolicy::assistant},
             MarkStyle::none);
  EXPECT_THAT(rows.targets, ElementsAre(-1, -1, -1, -1, -1, 200, 201, token_turn_end, -1, -1, -1,
                                        -1, 202, token_turn_end, -1, -1));
  EXPECT_EQ(rows.target_count, 5);
}

TEST(Expand, ALongDocumentLosesItsLastTextAndKeepsItsPictures) {
  const SampleRows rows = expand(sample_of({begin, 100, image, 101, 102, image, 103}, "ddddddd"),
                                 {.length = 7, .tokens_per_tile = 2}, MarkStyle::none);
  EXPECT_THAT(rows.sources, ElementsAre(begin, 100, -1, -2, 101, -3, -4));
  EXPECT_THAT(rows.targets, ElementsAre(100, -1, -1, 101, -1, -1, -1));
}

TEST(Expand, APictureAtTheEndPredictsNothing) {
  const SampleRows rows = expand(sample_of({begin, 100, image}, "ddd"),
                                 {.length = 7, .tokens_per_tile = 2}, MarkStyle::none);
  EXPECT_THAT(rows.targets, ElementsAre(100, -1, -1, -1));
}

TEST(Expand, WhatContradictsTheIndexIsAnError) {
  const Sample sample = sample_of({begin, 100, image, 101}, "ddda");
  const TrainingSetIndex index = index_of(sample);
  const SampleLayout layout(
      index, {.length = 32, .tokens_per_tile = 2, .targets = TargetPolicy::assistant}, {});
  const auto error_of = [&](const Sample& other) -> std::string {
    try {
      expand_sample(other, 0, 0, 0, layout);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(error_of(sample), "");
  EXPECT_THAT(error_of(sample_of({begin, 100, image}, "ddd")), HasSubstr("3 tokens"));
  EXPECT_THAT(error_of(sample_of({begin, 100, 102, 101}, "ddda")), HasSubstr("0 image tokens"));
  EXPECT_THAT(error_of(sample_of({begin, 100, image, 512}, "ddda")),
              HasSubstr("vocabulary of 512"));
  EXPECT_THAT(error_of(sample_of({begin, 100, image, 101}, "daaa")), HasSubstr("2 targets"));
  EXPECT_THAT(error_of(sample_of({image, 100, begin, 101}, "ddda")),
              HasSubstr("opens with a picture"));
}

}  // namespace
}  // namespace orchard::testing
