// A run small enough for tests: samples with and without pictures, a model of a few thousand
// parameters, an observer that remembers.
#pragma once

#include <gtest/gtest.h>

#include "comm/communicator.h"
#include "data/training_set.h"
#include "tests/data/corpus.h"
#include "tests/data/scratch.h"
#include "tests/models/toy_model.h"
#include "train/trainer.h"

namespace orchard::testing {

inline Sample toy_sample(const Tokenizer& tokenizer, int i, const std::string& text) {
  Sample sample;
  sample.id = fmt::format("toy:{}", i);
  sample.category = i % 3 == 0 ? "text" : "caption";
  sample.tokens = {token_begin};
  for (int p = 0; p < i % 3; ++p) {
    Picture picture = white(16 + i % 9, 12 + 5 * p);
    paint(picture, 2, 3, 11, 9, color_of(fmt::format("{}/{}", i, p)));
    sample.tokens.push_back(token_image);
    sample.pictures.push_back({encode_png(picture), picture.width, picture.height});
  }
  const auto words = tokenizer.encode(text);
  sample.tokens.insert(sample.tokens.end(), words.begin(), words.end());
  sample.tokens.push_back(token_end);
  sample.roles.assign(sample.tokens.size(), Role::document);
  return sample;
}

// `folder` does not exist yet. Every tenth sample is held out.
inline void write_toy_training_set(const std::filesystem::path& folder, int samples = 60) {
  const auto sentences = some_sentences(200);
  const auto model = train_tokenizer(sentences, {.vocabulary = 340});
  const Tokenizer tokenizer(model, "toy");
  std::filesystem::create_directories(folder);
  TrainingSetWriter writer(folder, {"text", "caption"}, model, {.shard_bytes = 8000});
  for (int i = 0; i < samples; ++i) {
    writer.add(toy_sample(tokenizer, i, sentences[static_cast<std::size_t>(i)].substr(0, 30)),
               i % 10 ? Split::train : Split::held_out);
  }
  writer.finish();
}

inline StageConfig toy_stage(int number, std::int64_t steps) {
  return {.number = number,
          .steps = steps,
          .global_batch = 4,
          .sequence_length = 64,
          .side = 8,
          .mixture = "equal",
          .peak_lr = 3e-3,
          .warmup = 2};
}

// One stage; sparse in its second layer.
inline RunConfig toy_run(const std::filesystem::path& training_set, std::int64_t steps) {
  RunConfig run{.stages = {toy_stage(1, steps)}, .seed = 3, .training_set = training_set};
  run.model = toy_model();
  run.model.decoder.vocabulary = 0;  // the tokenizer's
  run.model.decoder.max_positions = 64;
  return run;
}

// Stages 2 and 3 after the first: AdaFactor on larger tiles, fixed and dynamic, so that the position
// tables are resized on the way.
inline void add_later_stages(RunConfig& run, std::int64_t steps) {
  for (const int number : {2, 3}) {
    StageConfig stage = toy_stage(number, steps);
    stage.side = 12;
    stage.tiling.mode = number == 2 ? TilingMode::fixed : TilingMode::dynamic;
    stage.tiling.min_tiles = 1;
    stage.tiling.max_tiles = 2;
    stage.optimizer.kind = OptimizerKind::adafactor;
    stage.optimizer.factor_threshold = 8;
    run.stages.push_back(stage);
  }
}

class Recorder : public Observer {
 public:
  void on_step(const StepEvent& event) override { steps.push_back(event); }
  void on_validation(const ValidationEvent& event) override { validations.push_back(event); }
  void on_message(const std::string& text) override { messages.push_back(text); }

  std::vector<StepEvent> steps;
  std::vector<ValidationEvent> validations;
  std::vector<std::string> messages;
};

}  // namespace orchard::testing
