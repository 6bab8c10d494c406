// From a training set on disk to micro-batches: what the shards hold is what the plans expect.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "data/batch_builder.h"
#include "data/held_out.h"
#include "data/training_set.h"
#include "tests/data/corpus.h"
#include "tests/data/scratch.h"

namespace orchard::testing {
namespace {

Sample make_sample(const Tokenizer& tokenizer, int i) {
  Sample sample;
  sample.id = fmt::format("test:{}", i);
  sample.category = i % 3 == 0 ? "text" : "caption";
  sample.tokens = {token_begin};
  for (int p = 0; p < i % 3; ++p) {
    Picture picture{20 + 3 * i, 50 + p, {}};
    picture.rgb.assign(static_cast<std::size_t>(3 * picture.width * picture.height),
                       static_cast<std::uint8_t>(3 * i));
    sample.tokens.push_back(token_image);
    sample.pictures.push_back({encode_png(picture), picture.width, picture.height});
  }
  const auto text = tokenizer.encode(fmt::format("sample number {}", i));
  sample.tokens.insert(sample.tokens.end(), text.begin(), text.end());
  sample.tokens.push_back(token_end);
  sample.roles.assign(sample.tokens.size(), Role::document);
  return sample;
}

TEST(StageData, EverySampleOnDiskFillsItsPlan) {
  const auto model = train_tokenizer(some_sentences(300), {.vocabulary = 400});
  const Tokenizer tokenizer(model, "test");
  const Scratch scratch;
  TrainingSetWriter writer(scratch / "", {"text", "caption"}, model, {.shard_bytes = 3000});
  for (int i = 0; i < 40; ++i) {
    writer.add(make_sample(tokenizer, i), i % 4 ? Split::train : Split::held_out);
  }
  writer.finish();
  const TrainingSet set = TrainingSet::open(scratch / "");

  const TilingOptions tiling{.mode = TilingMode::dynamic, .side = 28};
  const MarkTable marks = make_mark_table(
      MarkStyle::index, [&](auto text) { return set.tokenizer().encode(text); }, tiling,
      set.index());
  const SampleLayout layout(set.index(), {.length = 256, .tokens_per_tile = 4, .tiling = tiling},
                            marks);
  const auto device = make_cpu_device({.threads = 1});
  BatchBuilder builder(
      layout,
      {.read = [&](std::int64_t i) { return set.load(i); },
       .decode = [](const EncodedPicture& encoded) { return decode_picture(encoded.bytes); }},
      {.on_bad = [](const BadSample& bad) { ADD_FAILURE() << bad.id << ": " << bad.reason; }},
      *device);

  PackingPlan plan(layout, named_mixture("stage1", set.index().categories), 1);
  const MicroBatch trained = builder.build(plan.sequences(0, 20));
  EXPECT_GT(trained.tiles, 0);
  const HeldOutPlan held_out = plan_held_out(layout);
  EXPECT_EQ(held_out.samples, 10);
  std::int64_t targets = 0;
  for (const PackedSequence& sequence : held_out.sequences) targets += sequence.targets;
  EXPECT_EQ(builder.build(held_out.sequences).target_count, targets);
  EXPECT_EQ(builder.build(held_out.swapped()).target_count, targets);
}

}  // namespace
}  // namespace orchard::testing
