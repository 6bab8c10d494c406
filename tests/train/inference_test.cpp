// A model that is only asked answers as the one that was trained, and its key-value caches change
// nothing.
#include "train/inference.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "parallel/random.h"
#include "tests/data/scratch.h"
#include "tests/models/toy_model.h"
#include "train/model_json.h"

namespace orchard::testing {
namespace {

// One document of text that predicts each next token.
MicroBatch document(const std::vector<std::int32_t>& tokens) {
  const auto rows = static_cast<std::int64_t>(tokens.size());
  MicroBatch batch{.sequences = 1,
                   .length = rows,
                   .sources = tokens,
                   .document_offsets = {0, static_cast<std::int32_t>(rows)},
                   .real_rows = {static_cast<std::int32_t>(rows)}};
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    batch.positions.push_back(static_cast<std::int32_t>(i));
    batch.targets.push_back(i + 1 < tokens.size() ? tokens[i + 1] : -1);
  }
  batch.target_count = rows - 1;
  return batch;
}

// A picture of two tiles, with a word before it and `text` behind it.
MicroBatch picture_document(const ModelConfig& model, const std::vector<std::int32_t>& text,
                            const std::string& pixels) {
  const std::int64_t tiles = 2;
  std::vector<std::int32_t> sources{1};
  for (std::int64_t row = 0; row < tiles * model.connector.tokens(); ++row)
    sources.push_back(static_cast<std::int32_t>(-1 - row));
  sources.insert(sources.end(), text.begin(), text.end());
  MicroBatch batch = document(sources);
  batch.targets.assign(sources.size(), -1);
  batch.target_count = 0;
  batch.tiles = tiles;
  const CounterRandom random(29, pixels);
  const std::int64_t values = tiles * model.vision.patches() * model.vision.patch_values();
  for (std::int64_t i = 0; i < values; ++i)
    batch.patches.push_back(static_cast<float>(random.normal(static_cast<std::uint64_t>(i))));
  return batch;
}

// What follows `batch` where nothing is cached: the token that a forward pass over all of it, as
// training has it, finds likeliest for its last row.
std::int32_t likeliest_next(InferenceModel& asked, MicroBatch batch) {
  batch.target_count = 1;
  std::int32_t best = 0;
  float lowest = std::numeric_limits<float>::infinity();
  for (std::int32_t token = 0; token < asked.config().decoder.vocabulary; ++token) {
    batch.targets.back() = token;
    const std::vector<float> losses = asked.runner().evaluate(batch);
    EXPECT_EQ(losses.size(), 1u);
    if (losses.at(0) < lowest) best = token;
    lowest = std::min(lowest, losses.at(0));
  }
  return best;
}

class InferenceTest : public ::testing::TestWithParam<DType> {
 protected:
  InferenceTest()
      : device_(make_cpu_device()),
        stream_(device_->make_stream()),
        world_(make_single_communicator()),
        alone_(*world_, {}),
        model_(store_, toy_model()) {
    store_.allocate(*device_, *stream_, GetParam());
    // Wide enough that the likeliest token is clearly so.
    store_.initialise(*stream_, 3, 5);
    model_.prepare(*device_, *stream_);
    const Optimizer optimizer(*device_, *stream_, store_, {});
    save_checkpoint(scratch_ / "c.h5", {.model = model_json(model_.config())}, *stream_, *world_,
                    store_, optimizer);
  }

  InferenceModel load() {
    return {scratch_ / "c.h5", *device_, alone_, {.dtype = GetParam(), .longest = 16}};
  }

  const std::vector<std::int32_t> prompt_{1, 7, 23, 11, 39};
  Scratch scratch_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<Stream> stream_;
  std::unique_ptr<Communicator> world_;
  ParallelContext alone_;
  ParameterStore store_;
  MultimodalModel model_;
};

TEST_P(InferenceTest, LossesAreThoseOfTheTrainedModel) {
  StepRunner trained(*device_, *stream_, alone_, store_, model_);
  InferenceModel asked = load();
  const std::vector<float> expected = trained.evaluate(document(prompt_));
  EXPECT_EQ(expected.size(), prompt_.size() - 1);
  EXPECT_EQ(asked.runner().evaluate(document(prompt_)), expected);
}

TEST_P(InferenceTest, EachTokenFollowsFromTheWholeTextBeforeIt) {
  InferenceModel asked = load();
  const std::vector<std::int32_t> generated = asked.generate(document(prompt_), 8, {});
  ASSERT_EQ(generated.size(), 8u);
  std::vector<std::int32_t> text = prompt_;
  for (const std::int32_t token : generated) {
    EXPECT_EQ(asked.generate(document(text), 1, {}), std::vector{token}) << text.size();
    text.push_back(token);
  }
}

TEST_P(InferenceTest, EachTokenFollowsFromThePictureAndAllTextBeforeIt) {
  InferenceModel asked = load();
  std::vector<std::int32_t> text = {7, 23};
  const auto shown = [&](const char* pixels) {
    return picture_document(asked.config(), text, pixels);
  };
  const std::vector<std::int32_t> generated = asked.generate(shown("one"), 5, {});
  ASSERT_EQ(generated.size(), 5u);
  EXPECT_NE(generated, asked.generate(shown("other"), 5, {})) << "the picture says nothing";
  for (const std::int32_t token : generated) {
    EXPECT_EQ(likeliest_next(asked, shown("one")), token) << text.size();
    text.push_back(token);
  }
}

TEST_P(InferenceTest, StopsBeforeAStopToken) {
  InferenceModel asked = load();
  const std::vector<std::int32_t> free = asked.generate(document(prompt_), 8, {});
  const std::vector<std::int32_t> stop{free[2]};
  const auto first = std::find(free.begin(), free.end(), free[2]);
  EXPECT_EQ(asked.generate(document(prompt_), 8, stop), std::vector(free.begin(), first));
}

INSTANTIATE_TEST_SUITE_P(DTypes, InferenceTest, ::testing::Values(DType::f32, DType::bf16),
                         [](const auto& test) { return std::string(name_of(test.param)); });

}  // namespace
}  // namespace orchard::testing
