// Packed sequences: what fits where, resuming, shares, and every row used once.
#include "data/packing.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "data/step_plan.h"
#include "kernels/core/error.h"
#include "tests/data/planning.h"

namespace orchard::testing {
namespace {

using ::testing::HasSubstr;

constexpr PictureSize square{100, 100};

Mixture everything(const TrainingSetIndex& index) {
  return named_mixture("equal", index.categories);
}

// Dynamic splitting on 28-pixel tiles of 4 tokens with index marks of one token a character.
SampleLayout dynamic_layout(const TrainingSetIndex& index, std::int64_t length) {
  const TilingOptions tiling{.mode = TilingMode::dynamic, .side = 28};
  return {index,
          {.length = length, .tokens_per_tile = 4, .max_pictures = 3, .tiling = tiling},
          make_mark_table(MarkStyle::index, characters, tiling, index)};
}

TEST(SampleLayout, CountsTextMarksAndVisualRows) {
  const TrainingSetIndex index = make_index(
      {"a"}, {{.text_tokens = 10},
              {.text_tokens = 10, .pictures = {square}},
              {.text_tokens = 10, .pictures = {square, square, square}, .assistant_tokens = 4}});
  const TilingOptions tiling{.mode = TilingMode::fixed};
  const MarkTable marks = make_mark_table(MarkStyle::index, characters, tiling, index);
  PackingOptions options{.length = 4096, .tokens_per_tile = 144, .tiling = tiling};
  const SampleLayout text(index, options, marks);
  EXPECT_EQ(text.extent(0).rows, 10);
  EXPECT_EQ(text.extent(0).targets, 9) << "the first token of a document has nothing before it";
  EXPECT_EQ(text.extent(1).rows, 10 + 5 * (144 + 7));
  EXPECT_EQ(text.extent(1).tiles, 5);
  EXPECT_EQ(text.extent(1).targets, 9);
  EXPECT_EQ(text.extent(2).rows, 10 + 3 * (144 + 7)) << "three pictures are not split";
  options.targets = TargetPolicy::assistant;
  const SampleLayout answers(index, options, marks);
  EXPECT_EQ(answers.extent(0).targets, 0);
  EXPECT_EQ(answers.extent(2).targets, 4);
}

TEST(SampleLayout, CutsTextButNeverPictures) {
  const TrainingSetIndex index =
      make_index({"a"}, {{.text_tokens = 100},
                         {.text_tokens = 100, .pictures = {square, square}},
                         {.text_tokens = 1, .pictures = {square, square, square}},
                         {.text_tokens = 2, .pictures = {square, square, square, square, square}},
                         {.text_tokens = 32},
                         {.text_tokens = 0}});
  PackingOptions options{.length = 32, .tokens_per_tile = 10};
  const SampleLayout text(index, options, {});
  EXPECT_EQ(text.extent(0).rows, 32);
  EXPECT_EQ(text.extent(0).targets, 31);
  EXPECT_EQ(text.extent(1).rows, 32);
  EXPECT_EQ(text.extent(1).tiles, 2);
  EXPECT_EQ(text.extent(1).targets, 11);
  EXPECT_EQ(text.extent(2).rows, 31);
  EXPECT_EQ(text.extent(2).targets, 0);
  EXPECT_EQ(text.extent(3).packability, Packability::pictures_too_large);
  EXPECT_EQ(text.extent(4).packability, Packability::whole);
  EXPECT_EQ(text.extent(5).packability, Packability::empty);
  const PackabilityCounts counts = text.count(Split::train);
  EXPECT_EQ(counts.whole, 2);
  EXPECT_EQ(counts.truncated, 2);
  EXPECT_EQ(counts.pictures_too_large, 1);
  EXPECT_EQ(counts.empty, 1);
  EXPECT_EQ(text.packable(Split::train), (std::vector<std::int64_t>{0, 1, 2, 4}));

  options.max_pictures = 1;
  EXPECT_EQ(SampleLayout(index, options, {}).count(Split::train).pictures_too_large, 3);
  options.targets = TargetPolicy::assistant;
  EXPECT_EQ(SampleLayout(index, options, {}).extent(0).packability, Packability::answer_too_long);
}

TEST(Packing, ASampleThatDoesNotFitOpensTheNextSequence) {
  const TrainingSetIndex index = make_index({"a"}, {{.text_tokens = 6}, {.text_tokens = 6}});
  const SampleLayout layout(index, {.length = 15}, {});
  PackingPlan plan(layout, everything(index), 1);
  std::vector<std::int64_t> order;
  for (int n = 0; n < 3; ++n) {
    const PackedSequence sequence = plan.sequence(n);
    ASSERT_EQ(sequence.samples.size(), 2u);
    EXPECT_EQ(sequence.rows, 12);
    EXPECT_EQ(sequence.targets, 10);
    EXPECT_EQ(sequence.samples[1].first_row, 6);
    for (const PackedSample& sample : sequence.samples) order.push_back(sample.sample);
  }
  // Both samples once per epoch, none lost between sequences.
  for (std::size_t i = 0; i < order.size(); i += 2) EXPECT_NE(order[i], order[i + 1]);
}

TEST(Packing, APictureLimitClosesASequence) {
  const TrainingSetIndex index =
      make_index({"a"}, {{.text_tokens = 2, .pictures = {square, square}}});
  const SampleLayout layout(
      index, {.length = 4096, .tokens_per_tile = 1, .max_pictures = 16, .tiling = {.side = 378}},
      {});
  PackingPlan plan(layout, everything(index), 1);
  EXPECT_EQ(plan.sequence(0).pictures, 16);
  EXPECT_EQ(plan.sequence(0).samples.size(), 8u);
}

TEST(Packing, EverySequenceIsFilledRowByRow) {
  for (unsigned seed = 0; seed < 8; ++seed) {
    const TrainingSetIndex index = random_index(seed, 300, 150);
    const SampleLayout layout = dynamic_layout(index, 128);
    PackingPlan plan(layout, named_mixture(seed % 2 ? "stage1" : "equal", index.categories), seed);
    for (int n = 0; n < 400; ++n) {
      const PackedSequence sequence = plan.sequence(n);
      ASSERT_FALSE(sequence.samples.empty());
      std::int32_t row = 0, tiles = 0, targets = 0, pictures = 0;
      for (const PackedSample& packed : sequence.samples) {
        ASSERT_EQ(packed.first_row, row);
        ASSERT_EQ(packed.rows, layout.extent(packed.sample).rows);
        ASSERT_EQ(layout.record(packed.sample).split, Split::train);
        ASSERT_EQ(packed.pictures_of, packed.sample);
        row += packed.rows;
        tiles += packed.tiles;
        targets += packed.targets;
        pictures += layout.record(packed.sample).picture_count;
      }
      ASSERT_EQ(sequence.rows, row);
      ASSERT_EQ(sequence.tiles, tiles);
      ASSERT_EQ(sequence.targets, targets);
      ASSERT_EQ(sequence.pictures, pictures);
      ASSERT_LE(row, 128);
      ASSERT_LE(pictures, 3);
      if (seed % 2 == 0) {  // one stream: the next sequence opens with what did not fit this one
        const SampleExtent& next = layout.extent(plan.sequence(n + 1).samples[0].sample);
        ASSERT_TRUE(row + next.rows > 128 || pictures + next.pictures > 3);
      }
    }
  }
}

TEST(Packing, WithoutReplacementUntilACategoryIsThrough) {
  const TrainingSetIndex index = random_index(3, 300, 60);
  const SampleLayout layout = dynamic_layout(index, 128);
  PackingPlan plan(layout, named_mixture("equal", index.categories), 9);
  std::map<std::int64_t, int> seen;
  std::map<std::int32_t, std::int64_t> drawn, size;
  for (const std::int64_t sample : layout.packable(Split::train))
    ++size[layout.record(sample).category];
  for (int n = 0; n < 1000; ++n) {
    for (const PackedSample& packed : plan.sequence(n).samples) {
      const std::int32_t category = layout.record(packed.sample).category;
      const auto epoch = static_cast<int>(drawn[category]++ / size[category]);
      EXPECT_EQ(seen[packed.sample]++, epoch);
    }
  }
  EXPECT_GT(drawn[0], 2 * size[0]) << "the test must cross an epoch";
}

TEST(Packing, AnySequenceIsReachedInAnyOrder) {
  const TrainingSetIndex index = random_index(1, 500, 60);
  const SampleLayout layout = dynamic_layout(index, 64);
  for (const char* name : {"stage1", "equal"}) {
    // Far enough that the window of recent sequences and several checkpoints are passed.
    constexpr int count = 20000;
    PackingPlan straight(layout, named_mixture(name, index.categories), 4);
    const std::vector<PackedSequence> expected = straight.sequences(0, count);
    std::mt19937 engine(2);
    PackingPlan jumping(layout, named_mixture(name, index.categories), 4);
    for (int i = 0; i < 200; ++i) {
      const auto n = static_cast<std::int64_t>(engine() % count);
      ASSERT_EQ(jumping.sequence(n), expected[static_cast<std::size_t>(n)]) << n;
    }
    for (const std::int64_t resume : {1, 1023, 1024, 1025, 12345}) {
      PackingPlan resumed(layout, named_mixture(name, index.categories), 4);
      for (std::int64_t n = resume; n < resume + 50; ++n) {
        ASSERT_EQ(resumed.sequence(n), expected[static_cast<std::size_t>(n)]);
      }
    }
    PackingPlan other_seed(layout, named_mixture(name, index.categories), 5);
    EXPECT_NE(other_seed.sequences(0, 10), straight.sequences(0, 10));
  }
}

TEST(Packing, StageOneMixesWholeSequences) {
  const TrainingSetIndex index = random_index(5, 500, 60);
  const SampleLayout layout = dynamic_layout(index, 96);
  PackingPlan plan(layout, named_mixture("stage1", index.categories), 8);
  constexpr int count = 20000;
  std::vector<int> sequences(3);
  for (int n = 0; n < count; ++n) {
    const PackedSequence sequence = plan.sequence(n);
    const std::int32_t category = layout.record(sequence.samples[0].sample).category;
    for (const PackedSample& packed : sequence.samples) {
      ASSERT_EQ(layout.record(packed.sample).category, category);
    }
    ++sequences[static_cast<std::size_t>(category)];
  }
  const double shares[] = {0.5, 0.1, 0.4};
  for (std::size_t c = 0; c < 3; ++c) {  // five standard deviations of independent choices
    EXPECT_NEAR(sequences[c], shares[c] * count,
                5 * std::sqrt(count * shares[c] * (1 - shares[c])));
  }
}

TEST(Packing, OtherStagesMixExamples) {
  const TrainingSetIndex index = random_index(5, 500, 60);
  const SampleLayout layout = dynamic_layout(index, 96);
  PackingPlan plan(layout, named_mixture("equal", index.categories), 8);
  std::vector<int> samples(3);
  int total = 0, mixed = 0;
  for (int n = 0; n < 10000; ++n) {
    const PackedSequence sequence = plan.sequence(n);
    for (const PackedSample& packed : sequence.samples) {
      ++total;
      ++samples[static_cast<std::size_t>(layout.record(packed.sample).category)];
      mixed += layout.record(packed.sample).category !=
               layout.record(sequence.samples[0].sample).category;
    }
  }
  for (const int count : samples) EXPECT_NEAR(count, total / 3.0, 5 * std::sqrt(total * 2 / 9.0));
  EXPECT_GT(mixed, total / 10);
}

TEST(Packing, ReportSaysWhatIsSkipped) {
  const TrainingSetIndex index =
      make_index({"a", "b"}, {{.text_tokens = 2, .pictures = {square}}, {.category = 1}});
  const SampleLayout layout(index, {.length = 64}, {});
  const PackingPlan plan(layout, everything(index), 1);
  EXPECT_THAT(plan.report(), HasSubstr("1 whose pictures do not fit"));
  EXPECT_THAT(plan.report(), HasSubstr("category a of group datasets has no samples"));
  EXPECT_THROW(SampleLayout(index, {.length = 1}, {}), Error);
}

TEST(StepPlan, IsTheSameForAnyNumberOfRanks) {
  const TrainingSetIndex index = random_index(7, 500, 60);
  const SampleLayout layout = dynamic_layout(index, 96);
  const BatchShape shape{.global_sequences = 16, .micro_sequences = 2};
  const Mixture mixture = named_mixture("stage1", index.categories);
  PackingPlan reference(layout, mixture, 8);
  const StepPlan expected = plan_step(reference, 48, shape);
  EXPECT_EQ(expected.next_sequence, 64);
  for (const int ranks : {1, 2, 4}) {
    std::vector<MicroBatchPlan> joined;
    for (int rank = 0; rank < ranks; ++rank) {
      PackingPlan own(layout, mixture, 8);
      const StepPlan step = plan_step(own, 48, shape);
      EXPECT_EQ(step.targets, expected.targets);
      const auto share = step.of_rank(rank, ranks);
      EXPECT_EQ(share.size(), 8u / static_cast<unsigned>(ranks));
      joined.insert(joined.end(), share.begin(), share.end());
    }
    EXPECT_EQ(joined, expected.micro_batches);
  }
  EXPECT_THROW(expected.of_rank(0, 3), Error);
  EXPECT_THROW(plan_step(reference, 0, {.global_sequences = 3, .micro_sequences = 2}), Error);
}

TEST(StepPlan, SumsWhatTheSequencesHold) {
  const TrainingSetIndex index = random_index(7, 500, 60);
  const SampleLayout layout = dynamic_layout(index, 96);
  PackingPlan plan(layout, named_mixture("equal", index.categories), 8);
  const StepPlan step = plan_step(plan, 3, {.global_sequences = 6, .micro_sequences = 3});
  std::int64_t targets = 0, tiles = 0, rows = 0;
  for (const PackedSequence& sequence : plan.sequences(3, 6)) {
    targets += sequence.targets;
    tiles += sequence.tiles;
    rows += sequence.rows;
  }
  EXPECT_EQ(step.targets, targets);
  EXPECT_EQ(step.tiles, tiles);
  EXPECT_EQ(step.real_rows, rows);
  EXPECT_EQ(step.micro_batches[1].rows, 3 * 96);
}

TEST(StepPlan, DealsEverySequenceOnceAndTilesEvenly) {
  const TrainingSetIndex index = random_index(7, 500, 60);
  const SampleLayout layout = dynamic_layout(index, 96);
  PackingPlan plan(layout, named_mixture("equal", index.categories), 8);
  const StepPlan step = plan_step(plan, 32, {.global_sequences = 32, .micro_sequences = 8});
  std::vector<PackedSequence> expected = plan.sequences(32, 32), dealt;
  std::int32_t most_in_one = 0;
  for (const PackedSequence& sequence : expected)
    most_in_one = std::max(most_in_one, sequence.tiles);
  ASSERT_GT(most_in_one, 0);
  std::int64_t fewest = step.tiles, most = 0;
  for (const MicroBatchPlan& micro : step.micro_batches) {
    EXPECT_EQ(micro.sequences.size(), 8u);
    dealt.insert(dealt.end(), micro.sequences.begin(), micro.sequences.end());
    fewest = std::min(fewest, micro.tiles);
    most = std::max(most, micro.tiles);
  }
  EXPECT_LE(most - fewest, most_in_one);
  EXPECT_THAT(dealt, ::testing::UnorderedElementsAreArray(expected));
}

}  // namespace
}  // namespace orchard::testing
