#include "train/model_json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/data/scratch.h"

namespace orchard::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// Every field differs from its default and from every other.
ModelConfig unusual_model() {
  return {.vision = {.layers = 11,
                     .width = 12,
                     .heads = 13,
                     .mlp_width = 15,
                     .patch = 16,
                     .side = 17,
                     .features = FeatureLayer::penultimate},
          .connector = {.hidden = 18, .depth = 19, .out_side = 20},
          .decoder = {.layers = 21,
                      .hidden = 22,
                      .ffn = 23,
                      .heads = 24,
                      .kv_heads = 25,
                      .head_dim = 26,
                      .vocabulary = 27,
                      .max_positions = 28,
                      .rope_theta = 29.5,
                      .moe = {.experts = 30,
                              .every = 31,
                              .top_k = 32,
                              .capacity_factor = 1.375f,
                              .balance_counts = BalanceCounts::all_choices}}};
}

TEST(ModelJson, CarriesEveryDimension) {
  const ModelConfig a = unusual_model(), b = model_from_json(model_json(a));
  EXPECT_EQ(b.vision.layers, a.vision.layers);
  EXPECT_EQ(b.vision.width, a.vision.width);
  EXPECT_EQ(b.vision.heads, a.vision.heads);
  EXPECT_EQ(b.vision.mlp_width, a.vision.mlp_width);
  EXPECT_EQ(b.vision.patch, a.vision.patch);
  EXPECT_EQ(b.vision.side, a.vision.side);
  EXPECT_EQ(b.vision.features, a.vision.features);
  EXPECT_EQ(b.connector.hidden, a.connector.hidden);
  EXPECT_EQ(b.connector.depth, a.connector.depth);
  EXPECT_EQ(b.connector.out_side, a.connector.out_side);
  EXPECT_EQ(b.decoder.layers, a.decoder.layers);
  EXPECT_EQ(b.decoder.hidden, a.decoder.hidden);
  EXPECT_EQ(b.decoder.ffn, a.decoder.ffn);
  EXPECT_EQ(b.decoder.heads, a.decoder.heads);
  EXPECT_EQ(b.decoder.kv_heads, a.decoder.kv_heads);
  EXPECT_EQ(b.decoder.head_dim, a.decoder.head_dim);
  EXPECT_EQ(b.decoder.vocabulary, a.decoder.vocabulary);
  EXPECT_EQ(b.decoder.max_positions, a.decoder.max_positions);
  EXPECT_EQ(b.decoder.rope_theta, a.decoder.rope_theta);
  EXPECT_EQ(b.decoder.moe.experts, a.decoder.moe.experts);
  EXPECT_EQ(b.decoder.moe.every, a.decoder.moe.every);
  EXPECT_EQ(b.decoder.moe.top_k, a.decoder.moe.top_k);
  EXPECT_EQ(b.decoder.moe.capacity_factor, a.decoder.moe.capacity_factor);
  EXPECT_EQ(b.decoder.moe.balance_counts, a.decoder.moe.balance_counts);
}

TEST(ModelJson, NamesTheFieldThatIsWrong) {
  std::string text = model_json(unusual_model());
  const std::string field = "\"decoder.layers\":21";
  const auto at = text.find(field);
  ASSERT_NE(at, text.npos);
  std::string missing = text, mistyped = text;
  missing.replace(at, field.size(), "\"x\":1");
  mistyped.replace(at, field.size(), "\"decoder.layers\":\"many\"");
  EXPECT_THAT(message_of([&] { model_from_json(missing); }), HasSubstr("decoder.layers"));
  EXPECT_THAT(message_of([&] { model_from_json(mistyped); }),
              AllOf(HasSubstr("decoder.layers"), HasSubstr("many")));
  EXPECT_THAT(message_of([&] { model_from_json("{"); }), HasSubstr("model description"));
  EXPECT_THAT(message_of([&] { model_from_json("[]"); }), HasSubstr("model description"));
}

}  // namespace
}  // namespace orchard::testing
