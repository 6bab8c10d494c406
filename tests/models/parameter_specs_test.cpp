// How each parameter of a model starts and which ones decay: the tables of docs/parameters.md. A wrong
// one trains, only worse.
#include <gtest/gtest.h>

#include <cmath>
#include <regex>

#include "models/multimodal.h"
#include "tests/models/toy_model.h"

namespace orchard::testing {
namespace {

enum class Start { normal, residual, truncated, ones, zeros };

struct Row {
  const char* names;  // a regular expression of the whole name
  Start start;
  WeightDecay decay;
};

constexpr auto decays = WeightDecay::yes, stays = WeightDecay::no;

constexpr Row rows[] = {
    {"vision\\.patch_embedding", Start::normal, decays},
    {"vision\\.class_token", Start::normal, stays},
    {"vision\\.positions", Start::truncated, stays},
    {"vision\\.ln_(pre|post)\\.weight", Start::ones, stays},
    {"vision\\.ln_(pre|post)\\.bias", Start::zeros, stays},
    {"vision\\.layers\\.\\d\\.(attention|feed_forward)_norm\\.weight", Start::ones, stays},
    {"vision\\.layers\\.\\d\\.(attention|feed_forward)_norm\\.bias", Start::zeros, stays},
    {"vision\\.layers\\.\\d\\.attention\\.w[qkv]", Start::normal, decays},
    {"vision\\.layers\\.\\d\\.attention\\.wo", Start::residual, decays},
    {"vision\\.layers\\.\\d\\.attention\\.b[qkvo]", Start::zeros, stays},
    {"vision\\.layers\\.\\d\\.feed_forward\\.w_in", Start::normal, decays},
    {"vision\\.layers\\.\\d\\.feed_forward\\.w_out", Start::residual, decays},
    {"vision\\.layers\\.\\d\\.feed_forward\\.b_(in|out)", Start::zeros, stays},
    {"connector\\.positions", Start::truncated, stays},
    {"connector\\.s[12]\\.\\d\\.conv[123]", Start::normal, decays},
    {"connector\\.s[12]\\.\\d\\.norm[123]\\.weight", Start::ones, stays},
    {"connector\\.s[12]\\.\\d\\.norm[123]\\.bias", Start::zeros, stays},
    {"connector\\.s[12]\\.\\d\\.se_(reduce|expand)", Start::normal, decays},
    {"connector\\.s[12]\\.\\d\\.se_(reduce|expand)_bias", Start::zeros, stays},
    {"connector\\.s[12]\\.\\d\\.shortcut", Start::normal, decays},
    {"connector\\.s[12]\\.\\d\\.shortcut_norm\\.weight", Start::ones, stays},
    {"connector\\.s[12]\\.\\d\\.shortcut_norm\\.bias", Start::zeros, stays},
    {"connector\\.readout\\.w[12]", Start::normal, decays},
    {"connector\\.readout\\.b[12]", Start::zeros, stays},
    {"embedding", Start::normal, decays},
    {"decoder\\.layers\\.\\d\\.(attention|feed_forward)_norm", Start::ones, stays},
    {"decoder\\.layers\\.\\d\\.attention\\.w[qkv]", Start::normal, decays},
    {"decoder\\.layers\\.\\d\\.attention\\.wo", Start::residual, decays},
    {"decoder\\.layers\\.\\d\\.attention\\.[qk]_norm", Start::ones, stays},
    {"decoder\\.layers\\.\\d\\.feed_forward\\.w_(gate|up)", Start::normal, decays},
    {"decoder\\.layers\\.\\d\\.feed_forward\\.w_down", Start::residual, decays},
    {"decoder\\.layers\\.\\d\\.feed_forward\\.router", Start::normal, decays},
    {"decoder\\.layers\\.\\d\\.feed_forward\\.experts\\.\\d\\.w_(gate|up)", Start::normal, decays},
    {"decoder\\.layers\\.\\d\\.feed_forward\\.experts\\.\\d\\.w_down", Start::residual, decays},
    {"decoder\\.final_norm", Start::ones, stays},
};

Initializer initializer_of(Start start) {
  switch (start) {
    case Start::normal:
    case Start::residual:
      return Initializer::normal;
    case Start::truncated:
      return Initializer::truncated_normal;
    case Start::ones:
      return Initializer::ones;
    case Start::zeros:
      break;
  }
  return Initializer::zeros;
}

TEST(ParameterSpecs, StartAndDecayAsDocumented) {
  ModelConfig config = toy_model();
  config.vision.layers = 3;  // unlike the decoder's: a residual's deviation is of its own tower
  config.decoder.layers = 4;
  ParameterStore store;
  const MultimodalModel model(store, config);
  std::vector<int> found(std::size(rows));
  for (const Parameter* const parameter : store.catalogue()) {
    const ParameterSpec& p = parameter->spec;
    int matches = 0;
    for (std::size_t i = 0; i < std::size(rows); ++i) {
      const Row& row = rows[i];
      if (!std::regex_match(p.name, std::regex(row.names))) continue;
      ++matches;
      ++found[i];
      EXPECT_EQ(p.initializer, initializer_of(row.start)) << p.name;
      EXPECT_EQ(p.weight_decay, row.decay) << p.name;
      const int layers = p.name.starts_with("vision.") ? 3 : 4;
      const double residual = row.start == Start::residual ? std::sqrt(2.0 * layers) : 1;
      EXPECT_DOUBLE_EQ(p.std, 0.02 / residual) << p.name;
    }
    EXPECT_EQ(matches, 1) << p.name;
  }
  for (std::size_t i = 0; i < std::size(rows); ++i) EXPECT_GT(found[i], 0) << rows[i].names;
}

}  // namespace
}  // namespace orchard::testing
