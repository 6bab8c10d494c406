// What the links of a chain cost and keep: the counted sizes against the arena of a real pass, and
// what recomputation makes of a pipeline.
#include "train/link_costs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "models/multimodal.h"
#include "tests/models/toy_model.h"
#include "tests/parallel/toy_batches.h"
#include "train/pipeline_cut.h"
#include "train/upload.h"

namespace orchard::testing {
namespace {

using ::testing::DoubleNear;

// Wide enough for the statistics of rows, which are not counted, and the arena's alignment to be
// little.
ModelConfig wide_model(Recompute recompute) {
  ModelConfig model = toy_model();
  model.vision.layers = 3;
  model.vision.width = 96;
  model.vision.mlp_width = 160;
  model.connector.hidden = 64;
  model.connector.depth = 2;
  model.decoder.layers = 4;
  model.decoder.hidden = 128;
  model.decoder.ffn = 192;
  model.decoder.head_dim = 32;
  model.decoder.max_positions = 64;
  model.recompute = recompute;
  return model;
}

struct ArenaUse {
  std::vector<double> forward;  // values of each link
  double gradients = 0;         // that backward adds, of all links
};

// What a micro-batch really allocates, the halves of backward being apart.
ArenaUse use_of(const ModelConfig& config, const MicroBatch& micro_batch) {
  const std::unique_ptr<Device> device = make_cpu_device({.threads = 1});
  const std::unique_ptr<Stream> stream = device->make_stream();
  ParameterStore store;
  MultimodalModel model(store, config);
  store.allocate(*device, *stream, DType::f32);
  store.initialise(*stream, 1);
  model.prepare(*device, *stream);
  Arena arena(*device, std::size_t{1} << 26);  // one block: marks are places in it
  BatchUploader uploader(*device, config, DType::f32);
  const DeviceBatch batch = uploader.upload(*stream, arena, micro_batch);
  Pass pass{.stream = *stream, .arena = arena, .batch = batch};
  MultimodalModel::Saved saved;
  saved.halves = BackwardHalves::apart;
  model.forward(pass, saved);
  ArenaUse use;
  const auto values = [](std::size_t bytes) { return static_cast<double>(bytes) / 4; };
  const std::size_t end = arena.used_bytes();
  for (std::size_t i = 0; i < saved.marks.size(); ++i)
    use.forward.push_back(
        values((i + 1 < saved.marks.size() ? saved.marks[i + 1].used : end) - saved.marks[i].used));
  model.backward_input(pass, {}, saved, {});
  use.gradients = values(arena.used_bytes() - end);
  EXPECT_EQ(arena.growths(), 0);
  return use;
}

class SavedValuesOfAModel : public ::testing::TestWithParam<Recompute> {};

TEST_P(SavedValuesOfAModel, AreThoseOfTheArena) {
  const ModelConfig model = wide_model(GetParam());
  const MicroBatch batch = toy_micro_batch(model, {.sequences = 8, .length = 64, .tiles = 7}, "s");
  const ArenaUse use = use_of(model, batch);
  const std::int64_t padded_targets =
      (batch.target_count + target_multiple - 1) / target_multiple * target_multiple;
  const std::vector<SavedValues> counted = count_saved_values(
      model, {.tokens = 8 * 64, .targets = padded_targets, .tiles = batch.tiles});
  const std::vector<LinkKind> kinds = link_kinds(model);
  ASSERT_EQ(use.forward.size(), counted.size());
  double gradients = 0;
  for (std::size_t i = 0; i < counted.size(); ++i) {
    gradients += counted[i].backward - counted[i].forward;
    // A tenth for statistics and for the first block, whose sum is its input; a fifth where the rows
    // of experts are padded.
    const double share = kinds[i] == LinkKind::sparse_layer ? 0.2 : 0.1;
    EXPECT_THAT(use.forward[i], DoubleNear(counted[i].forward, share * counted[i].forward))
        << name_of(kinds[i]) << ", link " << i;
  }
  EXPECT_THAT(use.gradients, DoubleNear(gradients, 0.1 * gradients));
}

INSTANTIATE_TEST_SUITE_P(Both, SavedValuesOfAModel,
                         ::testing::Values(Recompute::none, Recompute::blocks),
                         [](const auto& one) {
                           return one.param == Recompute::none ? "Kept" : "Recomputed";
                         });

constexpr Workload work{.tokens = 128, .document_length = 32, .targets = 120};

ModelConfig text_model(Recompute recompute) {
  ModelConfig model = toy_model();
  model.vision.layers = 0;
  model.decoder.layers = 16;
  model.decoder.moe.experts = 0;
  model.recompute = recompute;
  return model;
}

TEST(CountedCosts, TheHeadSpendsAllInForward) {
  const LinkCost head = counted_costs(text_model(Recompute::none), work).back();
  EXPECT_EQ(head.forward, 3.0 * 2 * 120 * 16 * 40);  // logits and both gradients
  EXPECT_EQ(head.backward, 0);
}

TEST(CountedCosts, TheStemHasNobodyToSendAGradientTo) {
  const ModelConfig model = toy_model();
  Workload pictures = work;
  pictures.tiles = 3;
  const LinkCost stem = counted_costs(model, pictures).front();
  EXPECT_EQ(stem.forward, 3.0 * 2 * 9 * 12 * 16);
  EXPECT_EQ(stem.backward, stem.forward);
  EXPECT_EQ(link_halves(model, pictures).front().input_share, 0);
}

TEST(CountedCosts, WhatIsRecomputedIsOfTheInputHalf) {
  const ModelConfig kept = text_model(Recompute::none), again = text_model(Recompute::blocks);
  const std::vector<LinkCost> before = counted_costs(kept, work),
                              after = counted_costs(again, work);
  const std::vector<LinkHalves> halves_before = link_halves(kept, work),
                                halves_after = link_halves(again, work);
  for (std::size_t i = 0; i < before.size(); ++i) {
    SCOPED_TRACE(i);
    const bool is_layer = i > 0 && i <= 16;
    EXPECT_EQ(after[i].forward, before[i].forward);
    EXPECT_EQ(after[i].backward, before[i].backward + (is_layer ? before[i].forward : 0));
    // The weight half is what it was.
    EXPECT_NEAR(after[i].backward * (1 - halves_after[i].input_share),
                before[i].backward * (1 - halves_before[i].input_share), 1e-9 * before[i].total());
  }
  // Products: as much for either half; of attention's five only the input half has any.
  const double attention = 2.0 * 128 * 32 * 32, products = before[1].forward - attention;
  EXPECT_NEAR(halves_before[1].input_share, (products + 2.5 * attention) / before[1].backward,
              1e-12);
}

struct Peaks {
  std::vector<double> of_ranks;
  double makespan = 0;
};

Peaks peaks_of(ScheduleKind kind, Recompute recompute) {
  const ModelConfig model = text_model(recompute);
  const std::vector<LinkCost> costs = counted_costs(model, work);
  const PipelineStages stages = cut_pipeline(model, {.schedule = kind}, 4, costs);
  const PipelineSchedule schedule = stages.schedule(8);
  const PipelineTimeline timeline =
      simulate(schedule, pipeline_costs(stages, schedule, costs, link_halves(model, work)));
  Peaks peaks{.makespan = timeline.makespan()};
  for (const RankTimeline& rank : timeline.ranks) peaks.of_ranks.push_back(rank.peak_saved);
  return peaks;
}

TEST(PipelineCosts, RecomputationSavesMemoryWhereNoWeightHalfIsKeptBack) {
  using enum ScheduleKind;
  const Peaks kept = peaks_of(one_forward_one_backward, Recompute::none),
              again = peaks_of(one_forward_one_backward, Recompute::blocks),
              apart = peaks_of(zero_bubble_h1, Recompute::blocks);
  // The first rank has four micro-batches. Of those that are recomputed it keeps two values of a
  // layer's 6·16 + 3·32 + 3·16 + 3·32 = 336 for each of its 16 (32 of 336), and of one layer of the
  // four that it has everything.
  EXPECT_GT(kept.of_ranks.front(), 3.5);
  EXPECT_LT(again.of_ranks.front(), 4 * 32.0 / 336 + 0.6);
  // The last rank keeps three weight halves back, with all that they need.
  EXPECT_GT(apart.of_ranks.back(), 3);
  EXPECT_GT(apart.of_ranks.back(), 3 * again.of_ranks.back());
}

}  // namespace
}  // namespace orchard::testing
