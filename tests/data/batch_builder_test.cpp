// Micro-batches from planned sequences: rows, pictures, and what happens to bad samples.
#include "data/batch_builder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "data/held_out.h"
#include "data/loader.h"
#include "data/shard.h"
#include "kernels/core/error.h"
#include "kernels/image/image.h"
#include "tests/data/planning.h"

namespace orchard::testing {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// A training set in memory whose pictures are "encoded" as their raw pixels.
struct Memory {
  TrainingSetIndex index;
  std::vector<Sample> samples;

  // Sample i says begin, its pictures, then tokens 100 + i. Picture p is of the colour
  // (10·i + p + 1) throughout.
  explicit Memory(const std::vector<SampleShape>& shapes)
      : index(make_index({"a", "b", "c"}, shapes)) {
    for (std::size_t i = 0; i < shapes.size(); ++i) {
      Sample sample;
      sample.id = "sample-" + std::to_string(i);
      sample.tokens.push_back(token_begin);
      for (std::size_t p = 0; p < shapes[i].pictures.size(); ++p) {
        const PictureSize size = shapes[i].pictures[p];
        sample.tokens.push_back(token_image);
        sample.pictures.push_back({.bytes = {}, .width = size.width, .height = size.height});
        sample.pictures.back().bytes.assign(static_cast<std::size_t>(size.width * size.height * 3),
                                            colour(static_cast<int>(i), static_cast<int>(p)));
      }
      while (static_cast<std::int32_t>(sample.tokens.size()) < index.samples[i].token_count) {
        sample.tokens.push_back(100 + static_cast<std::int32_t>(i % 100));
      }
      sample.roles.assign(sample.tokens.size(), Role::document);
      samples.push_back(std::move(sample));
    }
  }

  static std::uint8_t colour(int sample, int picture) {
    return static_cast<std::uint8_t>(10 * sample + picture + 1);
  }

  SampleSource source() const {
    return {.read = [this](std::int64_t i) { return samples[static_cast<std::size_t>(i)]; },
            .decode =
                [](const EncodedPicture& encoded) {
                  require(!encoded.bytes.empty(), "no pixels");
                  return Picture{encoded.width, encoded.height, encoded.bytes};
                }};
  }
};

Device& device() {
  static const std::unique_ptr<Device> cpu = make_cpu_device({.threads = 1});
  return *cpu;
}

constexpr std::int64_t side = 28, patch = 14, tile_values = side * side * 3;

PackingOptions options_of(TilingMode mode, std::int64_t length) {
  return {.length = length, .tokens_per_tile = 2, .tiling = {.mode = mode, .side = side}};
}

PackedSequence pack(const SampleLayout& layout, std::initializer_list<std::int64_t> samples) {
  PackedSequence sequence;
  for (const std::int64_t sample : samples) EXPECT_TRUE(sequence.add(sample, layout));
  return sequence;
}

// The value of channel `channel` of a pixel of this grey, normalised.
float normalised(double grey, int channel) {
  const NormalisePatchify defaults{};
  const auto c = static_cast<std::size_t>(channel);
  return static_cast<float>((grey / 255 - defaults.mean[c]) / defaults.std[c]);
}

std::span<const float> tile_of(const MicroBatch& batch, std::int64_t tile) {
  return std::span(batch.patches)
      .subspan(static_cast<std::size_t>(tile * tile_values), tile_values);
}

// One value of the red plane per patch of a tile.
std::vector<float> reds(std::span<const float> tile) {
  std::vector<float> values;
  for (std::int64_t p = 0; p < 4; ++p)
    values.push_back(tile[static_cast<std::size_t>(p * patch * patch * 3)]);
  return values;
}

// A uniform picture stays uniform up to the rounding of resize weights: a few units of 2^-24 of
// 255, divided by 255 and by a deviation of 0.26.
constexpr float colour_tolerance = 1e-5f;

TEST(BatchBuilder, LaysSamplesOutRowByRow) {
  const Memory memory({{.text_tokens = 3},
                       {.category = 2, .text_tokens = 2, .pictures = {{5, 9}}},
                       {.category = 1, .text_tokens = 4, .pictures = {{8, 8}, {3, 2}}}});
  const SampleLayout layout(memory.index, options_of(TilingMode::whole, 8), {});
  BatchBuilder builder(layout, memory.source(), {}, device());
  const std::vector<PackedSequence> sequences{pack(layout, {0, 1}), pack(layout, {2})};
  const MicroBatch batch = builder.build(sequences);

  EXPECT_EQ(batch.sequences, 2);
  EXPECT_EQ(batch.length, 8);
  EXPECT_THAT(batch.sources, ElementsAre(token_begin, 100, 100, token_begin, -1, -2, 101, token_pad,
                                         token_begin, -3, -4, -5, -6, 102, 102, 102));
  EXPECT_THAT(batch.targets,
              ElementsAre(100, 100, -1, -1, -1, 101, -1, -1, -1, -1, -1, -1, 102, 102, 102, -1));
  EXPECT_THAT(batch.positions, ElementsAre(0, 1, 2, 0, 1, 2, 3, 0, 0, 1, 2, 3, 4, 5, 6, 7));
  EXPECT_THAT(batch.document_offsets, ElementsAre(0, 3, 7, 8, 16));
  EXPECT_THAT(batch.real_rows, ElementsAre(7, 8));
  EXPECT_THAT(batch.category, ElementsAre(0, 0, 0, 2, 2, 2, 2, -1, 1, 1, 1, 1, 1, 1, 1, 1));
  EXPECT_THAT(batch.sample, ElementsAre(0, 0, 0, 1, 1, 1, 1, -1, 2, 2, 2, 2, 2, 2, 2, 2));
  EXPECT_EQ(batch.tiles, 3);
  EXPECT_EQ(batch.target_count, 6);
  EXPECT_THAT(batch.bad_documents, IsEmpty());
  ASSERT_EQ(static_cast<std::int64_t>(batch.patches.size()), 3 * tile_values);
  const int owner[] = {1, 2, 2}, number[] = {0, 0, 1};
  for (int t = 0; t < 3; ++t) {
    EXPECT_THAT(reds(tile_of(batch, t)),
                Each(::testing::FloatNear(normalised(Memory::colour(owner[t], number[t]), 0),
                                          colour_tolerance)));
  }
}

TEST(BatchBuilder, CutsTilesInOrderPadsTheRestAndEndsWithTheOverview) {
  // 56 x 30 pixels on tiles of 28: 2 x 2 tiles hold it at scale 1, 26 columns of padding.
  Memory memory({{.text_tokens = 2, .pictures = {{.width = 30, .height = 56}}}});
  auto& pixels = memory.samples[0].pictures[0].bytes;
  for (std::size_t i = 0; i < pixels.size(); ++i) {
    const std::size_t row = i / 3 / 30, col = i / 3 % 30;
    pixels[i] = static_cast<std::uint8_t>(3 * row + col + i % 3);
  }
  PackingOptions options = options_of(TilingMode::dynamic, 64);
  options.tiling.max_tiles = 4;
  const SampleLayout layout(memory.index, options, {});
  ASSERT_EQ(layout.tile_plans(0)[0], (TilePlan{{2, 2}, 56, 30, true}));
  BatchBuilder builder(layout, memory.source(), {}, device());
  const MicroBatch batch = builder.build(std::vector{pack(layout, {0})});
  ASSERT_EQ(batch.tiles, 5);
  for (int tile = 0; tile < 4; ++tile) {
    for (int p = 0; p < 4; ++p) {
      for (int channel = 0; channel < 3; ++channel) {
        for (int i = 0; i < patch * patch; ++i) {
          const int row = tile / 2 * 28 + p / 2 * 14 + i / 14,
                    col = tile % 2 * 28 + p % 2 * 14 + i % 14;
          const float value =
              tile_of(batch, tile)[static_cast<std::size_t>((p * 3 + channel) * patch * patch + i)];
          ASSERT_NEAR(value, col < 30 ? normalised(3 * row + col + channel, channel) : 0,
                      colour_tolerance);
        }
      }
    }
  }
  // The overview shows the whole picture: a patch is 28 rows, 15 columns. A level is 0.015, and the
  // bicubic filter may round at the picture's edges by a few.
  const auto overview = reds(tile_of(batch, 4));
  EXPECT_NEAR(overview[0], normalised(2.5, 0), 0.05);
  EXPECT_NEAR(overview[2] - overview[0], normalised(3 * 28, 0) - normalised(0, 0), 0.05);
  EXPECT_NEAR(overview[1] - overview[0], normalised(15, 0) - normalised(0, 0), 0.05);
}

TEST(BatchBuilder, FillsEveryRowOnceWhateverTheLengths) {
  std::mt19937 engine(4);
  const auto below = [&](int n) {
    return static_cast<std::int32_t>(engine() % static_cast<unsigned>(n));
  };
  std::vector<SampleShape> shapes;
  for (int i = 0; i < 60; ++i) {
    SampleShape shape{.category = below(3), .text_tokens = 1 + below(90)};
    for (int p = below(4); p > 0; --p) shape.pictures.push_back({1 + below(90), 1 + below(90)});
    shapes.push_back(shape);
  }
  const Memory memory(shapes);
  const PackingOptions options = options_of(TilingMode::dynamic, 80);
  const SampleLayout layout(
      memory.index, options,
      make_mark_table(MarkStyle::index, characters, options.tiling, memory.index));
  PackingPlan plan(layout, named_mixture("equal", memory.index.categories), 3);
  BatchBuilder builder(layout, memory.source(), {}, device());
  for (int n = 0; n < 30; n += 3) {
    const std::vector<PackedSequence> sequences = plan.sequences(n, 3);
    const MicroBatch batch = builder.build(sequences);
    ASSERT_THAT(batch.bad_documents, IsEmpty());
    const std::size_t rows = 3 * 80;
    ASSERT_EQ(batch.sources.size(), rows);
    ASSERT_EQ(batch.targets.size(), rows);
    ASSERT_EQ(batch.document_offsets.back(), static_cast<std::int32_t>(rows));
    std::int64_t planned_targets = 0, next_visual = 0, targets = 0;
    for (const PackedSequence& sequence : sequences) planned_targets += sequence.targets;
    for (std::size_t d = 0; d + 1 < batch.document_offsets.size(); ++d) {
      const auto first = static_cast<std::size_t>(batch.document_offsets[d]);
      const auto last = static_cast<std::size_t>(batch.document_offsets[d + 1]);
      ASSERT_LT(first, last);
      ASSERT_EQ(first / 80, (last - 1) / 80) << "a document lies in one sequence";
      const bool padding = batch.sample[first] < 0;
      for (std::size_t r = first; r < last; ++r) {
        ASSERT_EQ(batch.sample[r], batch.sample[first]);
        ASSERT_EQ(batch.positions[r], padding ? 0 : static_cast<std::int32_t>(r - first));
        ASSERT_EQ(batch.sources[r] == token_pad, padding);
        if (batch.sources[r] < 0) {
          ASSERT_EQ(-1 - batch.sources[r], next_visual++);
        }
        if (batch.targets[r] < 0) continue;
        ++targets;
        ASSERT_LT(r + 1, last) << "a target lies in the same document";
        ASSERT_EQ(batch.targets[r], batch.sources[r + 1]);
      }
    }
    ASSERT_EQ(next_visual, batch.tiles * 2);
    ASSERT_EQ(targets, planned_targets);
    ASSERT_EQ(batch.target_count, planned_targets);
  }
}

bool equal(const MicroBatch& a, const MicroBatch& b) {
  return a.sources == b.sources && a.targets == b.targets && a.positions == b.positions &&
         a.document_offsets == b.document_offsets && a.patches == b.patches && a.sample == b.sample;
}

TEST(BatchBuilder, LoadedAheadOrNotBatchesAreBitEqual) {
  const Memory memory({{.text_tokens = 7}, {.text_tokens = 9, .pictures = {{50, 40}}}});
  const SampleLayout layout(memory.index, options_of(TilingMode::fixed, 48), {});
  PackingPlan plan(layout, named_mixture("equal", memory.index.categories), 3);
  BatchBuilder direct(layout, memory.source(), {}, device());
  const auto own_device = make_cpu_device({.threads = 1});
  BatchBuilder ahead(layout, memory.source(), {}, *own_device);
  PrefetchingLoader loader(
      [&](std::int64_t n) { return std::optional(ahead.build(plan.sequences(n, 1))); }, 2);
  for (int n = 0; n < 6; ++n) {
    EXPECT_TRUE(equal(*loader.next(), direct.build(plan.sequences(n, 1)))) << n;
  }
}

TEST(BatchBuilder, SwappedPicturesChangeNothingButThePictures) {
  const Memory memory({{.text_tokens = 5, .pictures = {{40, 40}}, .split = Split::held_out},
                       {.text_tokens = 9, .pictures = {{40, 41}}, .split = Split::held_out}});
  const SampleLayout layout(memory.index, options_of(TilingMode::whole, 48), {});
  const HeldOutPlan plan = plan_held_out(layout);
  ASSERT_EQ(plan.pairs.size(), 2u);
  BatchBuilder builder(layout, memory.source(), {}, device());
  const MicroBatch right = builder.build(plan.sequences), swapped = builder.build(plan.swapped());
  EXPECT_EQ(right.sources, swapped.sources);
  EXPECT_EQ(right.targets, swapped.targets);
  EXPECT_THAT(swapped.bad_documents, IsEmpty());
  for (int t = 0; t < 2; ++t) {
    const auto expected = tile_of(right, 1 - t), actual = tile_of(swapped, t);
    EXPECT_TRUE(std::equal(expected.begin(), expected.end(), actual.begin()));
  }
}

class BadSamples : public ::testing::Test {
 protected:
  BadSamples()
      : memory(
            {{.text_tokens = 3, .pictures = {{9, 9}}}, {.text_tokens = 3, .pictures = {{9, 9}}}}) {}

  MicroBatch build(SampleSource source) {
    const SampleLayout layout(memory.index, options_of(TilingMode::whole, 12), {});
    BatchBuilder builder(layout, std::move(source),
                         {.on_bad = [this](const BadSample& bad) { reported.push_back(bad); }},
                         device());
    MicroBatch batch = builder.build(std::vector{pack(layout, {0, 1})});
    EXPECT_EQ(builder.bad_samples(), 1);
    return batch;
  }

  // Sample 0 is bad: grey, without targets, in its place. Sample 1 is as ever.
  void expect_first_bad(const MicroBatch& batch, const char* reason) {
    ASSERT_EQ(reported.size(), 1u);
    EXPECT_EQ(reported[0].sample, 0);
    EXPECT_THAT(reported[0].reason, HasSubstr(reason));
    EXPECT_THAT(batch.bad_documents, ElementsAre(0));
    EXPECT_EQ(batch.target_count, 2);
    EXPECT_THAT(batch.targets, ElementsAre(-1, -1, -1, -1, -1, -1, -1, 101, 101, -1, -1, -1));
    EXPECT_THAT(batch.document_offsets, ElementsAre(0, 5, 10, 12));
    EXPECT_THAT(tile_of(batch, 0), Each(0.0f));
    EXPECT_THAT(reds(tile_of(batch, 1)),
                Each(::testing::FloatNear(normalised(Memory::colour(1, 0), 0), colour_tolerance)));
  }

  Memory memory;
  std::vector<BadSample> reported;
};

// Everything but the pictures' contents is as ever, and nobody looks at them.
TEST(BatchBuilder, PicturesCanBeLeftOut) {
  Memory memory({{.text_tokens = 3, .pictures = {{9, 9}, {20, 7}}},
                 {.text_tokens = 4},
                 {.text_tokens = 3, .pictures = {{9, 9}}}});
  const SampleLayout layout(memory.index, options_of(TilingMode::whole, 32), {});
  PackedSequence sequence = pack(layout, {0, 1, 2});
  BatchBuilder builder(layout, memory.source(), {}, device());
  const MicroBatch whole = builder.build({&sequence, 1});
  EXPECT_EQ(std::ssize(whole.patches), 3 * tile_values);

  SampleSource without = memory.source();
  without.decode = [](const EncodedPicture&) -> Picture {
    ADD_FAILURE() << "a picture was decoded";
    return {};
  };
  for (Sample& sample : memory.samples)
    for (EncodedPicture& picture : sample.pictures) picture.bytes.clear();
  BatchBuilder bare(layout, without, {.pictures = PictureContent::absent}, device());
  const MicroBatch absent = bare.build({&sequence, 1});
  EXPECT_THAT(absent.patches, IsEmpty());
  EXPECT_THAT(absent.bad_documents, IsEmpty());
  EXPECT_EQ(absent.tiles, whole.tiles);
  EXPECT_EQ(absent.sources, whole.sources);
  EXPECT_EQ(absent.targets, whole.targets);
  EXPECT_EQ(absent.positions, whole.positions);
  EXPECT_EQ(absent.document_offsets, whole.document_offsets);
  EXPECT_EQ(absent.real_rows, whole.real_rows);
  EXPECT_EQ(absent.category, whole.category);
  EXPECT_EQ(absent.sample, whole.sample);
  EXPECT_EQ(absent.target_count, whole.target_count);
}

TEST_F(BadSamples, APictureThatDoesNotDecodeTurnsGrey) {
  memory.samples[0].pictures[0].bytes.clear();
  const MicroBatch batch = build(memory.source());
  expect_first_bad(batch, "no pixels");
  EXPECT_EQ(reported[0].id, "sample-0");
  EXPECT_THAT(batch.sources, ElementsAre(token_begin, -1, -2, 100, 100, token_begin, -3, -4, 101,
                                         101, token_pad, token_pad));
}

TEST(BatchBuilder, OneBadPictureTurnsAllOfItsSampleGrey) {
  Memory memory({{.text_tokens = 3, .pictures = {{9, 9}, {9, 9}}}, {.text_tokens = 3}});
  memory.samples[0].pictures[1].bytes.clear();
  const SampleLayout layout(memory.index, options_of(TilingMode::whole, 12), {});
  BatchBuilder builder(layout, memory.source(), {}, device());
  EXPECT_THAT(builder.build(std::vector{pack(layout, {0, 1})}).patches, Each(0.0f));
}

TEST_F(BadSamples, APictureOfAnotherSizeThanTheIndexSaysTurnsGrey) {
  memory.samples[0].pictures[0].width = 3;
  memory.samples[0].pictures[0].height = 27;
  expect_first_bad(build(memory.source()), "decodes to 3 x 27 pixels, where the index says 9 x 9");
}

TEST_F(BadSamples, AnUnreadableSampleKeepsItsPlace) {
  SampleSource source = memory.source();
  source.read = [this](std::int64_t i) {
    require(i != 0, "shard is damaged");
    return memory.samples[static_cast<std::size_t>(i)];
  };
  const MicroBatch batch = build(source);
  expect_first_bad(batch, "shard is damaged");
  EXPECT_EQ(std::vector(batch.sources.begin() + 5, batch.sources.begin() + 8),
            (std::vector<std::int32_t>{token_begin, -3, -4}));
}

TEST_F(BadSamples, ADamagedShardIsNoBadSample) {
  SampleSource source = memory.source();
  source.read = [](std::int64_t) -> Sample { throw DamagedFile("shard-00000.h5 is damaged"); };
  EXPECT_THROW(build(source), DamagedFile);
  EXPECT_TRUE(reported.empty());
}

TEST_F(BadSamples, TokensThatContradictTheIndexKeepTheirPlace) {
  memory.samples[0].tokens.pop_back();
  expect_first_bad(build(memory.source()), "where the index says 4 tokens");
}

TEST_F(BadSamples, ManyInARowEndTheRun) {
  memory.samples[0].pictures[0].bytes.clear();
  const SampleLayout layout(memory.index, options_of(TilingMode::whole, 12), {});
  BatchBuilder builder(layout, memory.source(), {}, device());
  const std::vector bad{pack(layout, {0})}, good{pack(layout, {1})};
  for (int i = 0; i < 99; ++i) builder.build(bad);
  builder.build(good);  // breaks the row
  for (int i = 0; i < 99; ++i) builder.build(bad);
  try {
    builder.build(bad);
    FAIL() << "the hundredth passed";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("100 samples in a row"));
    EXPECT_THAT(error.what(), HasSubstr("sample-0"));
  }
  EXPECT_EQ(builder.bad_samples(), 199);
}

TEST(BatchBuilder, ASideThatPatchesDoNotDivideIsRefused) {
  const Memory memory(std::vector<SampleShape>{{.text_tokens = 3}});
  const SampleLayout layout(memory.index, options_of(TilingMode::whole, 12), {});
  EXPECT_THROW(BatchBuilder(layout, memory.source(), {.patch = 13}, device()), Error);
}

}  // namespace
}  // namespace orchard::testing
