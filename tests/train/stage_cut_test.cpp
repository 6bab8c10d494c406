// How a run cuts its model into pipeline stages: by FLOPs, by times that it keeps, or as asked for.
// The times are made up; only the last tests take any, and ask no more than what was timed.
#include "train/stage_cut.h"

#include <gmock/gmock.h>

#include "comm/communicator.h"
#include "data/atomic_file.h"
#include "tests/data/scratch.h"
#include "tests/models/toy_model.h"
#include "tests/parallel/toy_batches.h"
#include "train/link_timer.h"

namespace orchard::testing {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

// Lookup, `layers` layers, norm, head.
ModelConfig text_model(std::int64_t layers) {
  ModelConfig model = toy_model();
  model.vision.layers = 0;
  model.decoder.layers = layers;
  model.decoder.moe.experts = 0;
  return model;
}

constexpr Workload text_work{.tokens = 32, .document_length = 16, .targets = 30};

// One second for every layer and the head, nothing for the others.
CostByKind one_second_each() {
  const LinkCost second{.forward = 0.25, .backward = 0.75};
  return {{LinkKind::lookup, {}},
          {LinkKind::dense_layer, second},
          {LinkKind::sparse_layer, second},
          {LinkKind::final_norm, {}},
          {LinkKind::head, second}};
}

std::vector<int> sizes_of(const PipelineStages& stages) {
  std::vector<int> sizes(static_cast<std::size_t>(stages.count()));
  for (int stage = 0; stage < stages.count(); ++stage)
    sizes[static_cast<std::size_t>(stage)] = stages.links(stage).last - stages.links(stage).first;
  return sizes;
}

std::vector<int> cut_by(const ModelConfig& model, const CostByKind& seconds, int ranks) {
  return sizes_of(cut_pipeline(model, {}, ranks, measured_costs(model, text_work, seconds)));
}

TEST(MeasuredCosts, AnExpensiveKindGetsAStageToItself) {
  CostByKind seconds = one_second_each();
  // Lookup and four layers, three layers and the head with its norm.
  EXPECT_THAT(cut_by(text_model(7), seconds, 2), ElementsAre(5, 5));
  seconds[LinkKind::head].backward = 7.75;
  EXPECT_THAT(cut_by(text_model(7), seconds, 2), ElementsAre(8, 2));
  seconds[LinkKind::lookup].forward = 100;
  EXPECT_THAT(cut_by(text_model(7), seconds, 2), ElementsAre(1, 9));
}

TEST(MeasuredCosts, SparseLayersCountApartFromDenseOnes) {
  ModelConfig model = text_model(6);
  model.decoder.moe = {.experts = 4, .every = 3};
  CostByKind seconds = one_second_each();
  EXPECT_THAT(cut_by(model, seconds, 3), ElementsAre(3, 2, 4));
  // The layers 2 and 5: links 3 and 6.
  seconds[LinkKind::sparse_layer] = {.forward = 20, .backward = 40};
  EXPECT_THAT(cut_by(model, seconds, 4), ElementsAre(3, 1, 2, 3));
}

TEST(MeasuredCosts, AKindWithoutTimeIsCountedAtTheSpeedOfTheOthers) {
  const ModelConfig model = text_model(3);
  const std::vector<LinkCost> counted = counted_costs(model, text_work);
  const double flops_of_layer = counted[1].total();
  const std::vector<LinkCost> costs =
      measured_costs(model, text_work, {{LinkKind::dense_layer, {.forward = 1, .backward = 3}}});
  ASSERT_EQ(costs.size(), counted.size());
  for (std::size_t i = 0; i < costs.size(); ++i) {
    SCOPED_TRACE(i);
    EXPECT_NEAR(costs[i].total(), counted[i].total() * 4 / flops_of_layer, 1e-12);
  }
  EXPECT_EQ(costs[1], (LinkCost{.forward = 1, .backward = 3}));
  EXPECT_GT(costs.back().total(), 0);
}

class CutStage : public ::testing::Test {
 protected:
  CutStage() {
    run_.layout.pipeline = 2;
    run_.pipeline.balance = PipelineBalance::measured;
    run_.run_folder = scratch_ / "";
    run_.stages = {{.number = 1}};
  }

  StageCut cut(const std::string& setting = "eight sequences") {
    return cut_stage({.run = run_,
                      .stage = run_.stages.front(),
                      .model = model_,
                      .work = text_work,
                      .setting = setting,
                      .time =
                          [&] {
                            ++taken_;
                            return seconds_;
                          }},
                     *alone_);
  }

  std::filesystem::path kept() const { return link_times_path(run_.run_folder, 1); }

  Scratch scratch_;
  std::unique_ptr<Communicator> alone_ = make_single_communicator();
  ModelConfig model_ = text_model(7);
  RunConfig run_;
  CostByKind seconds_ = one_second_each();
  int taken_ = 0;
};

TEST_F(CutStage, TimesAreTakenOnceAndHoldForEveryResume) {
  // Numbers that only survive if every bit does.
  seconds_[LinkKind::head] = {.forward = 1.0 / 3, .backward = 0.1 + 0.2};
  const StageCut first = cut();
  EXPECT_EQ(taken_, 1);
  EXPECT_THAT(sizes_of(first.stages), ElementsAre(5, 5));
  EXPECT_THAT(first.origin, HasSubstr("taken now"));
  EXPECT_EQ(read_link_times(kept()).seconds, seconds_);

  seconds_[LinkKind::head].forward = 100;  // as if the machine were busy now
  const StageCut resumed = cut();
  EXPECT_EQ(taken_, 1);
  EXPECT_EQ(resumed.costs, first.costs);
  EXPECT_EQ(sizes_of(resumed.stages), sizes_of(first.stages));
  EXPECT_THAT(resumed.origin, HasSubstr(kept().string()));
}

TEST_F(CutStage, TimesOfAnotherSettingAreTakenAnew) {
  cut();
  seconds_[LinkKind::head].forward = 100;
  EXPECT_THAT(sizes_of(cut("four sequences").stages), ElementsAre(8, 2));
  EXPECT_EQ(taken_, 2);
  EXPECT_EQ(read_link_times(kept()).setting, "four sequences");
}

TEST_F(CutStage, NothingIsTimedWhereFlopsOrTheUserDecide) {
  run_.pipeline.balance = PipelineBalance::counted;
  EXPECT_EQ(cut().costs, counted_costs(model_, text_work));
  run_.pipeline.balance = PipelineBalance::measured;
  run_.pipeline.stage_blocks = {4, 6};
  EXPECT_THAT(sizes_of(cut().stages), ElementsAre(4, 6));
  run_.layout.pipeline = 1;
  EXPECT_EQ(cut().stages.count(), 1);
  EXPECT_EQ(taken_, 0);
  EXPECT_FALSE(std::filesystem::exists(kept()));
}

TEST_F(CutStage, DamagedTimesAreRefusedWithTheCure) {
  const std::pair<const char*, const char*> wrong[] = {
      {"{", "link-times-stage1.json"},
      {R"({"setting": "s", "seconds": {}})", "the field \"device\" is missing"},
      {R"({"setting": "s", "device": "cpu", "seconds": {}})", "\"seconds\" has no links"},
      {R"({"setting": "s", "device": "cpu", "seconds": {"tail": {}}})", "no link \"tail\""},
      {R"({"setting": "s", "device": "cpu", "seconds": {"head": {"forward": 1}}})",
       "head: the field \"backward\" is missing"},
      {R"({"setting": "s", "device": "cpu", "seconds": {"head": {"forward": -1, "backward": 1}}})",
       "head: forward = -1 is no time"},
  };
  for (const auto& [text, reason] : wrong) {
    write_file(kept(), text);
    EXPECT_THAT(message_of([&] { cut(); }),
                AllOf(HasSubstr(kept().string()), HasSubstr(reason), HasSubstr("remove it")))
        << text;
  }
  EXPECT_EQ(taken_, 0);
}

std::vector<LinkKind> timed_kinds(const ModelConfig& model, const ToyShape& shape,
                                  Recompute recompute = Recompute::none) {
  ModelConfig timed = model;
  timed.recompute = recompute;
  const std::unique_ptr<Device> device = make_cpu_device({.threads = 1});
  const std::unique_ptr<Communicator> alone = make_single_communicator();
  std::vector<LinkKind> kinds;
  for (const auto& [kind, cost] :
       time_links(*device, *alone, timed, {}, toy_micro_batch(model, shape, "timed"))) {
    kinds.push_back(kind);
    EXPECT_GT(cost.forward, 0) << name_of(kind);
    EXPECT_GT(cost.backward, 0) << name_of(kind);
  }
  return kinds;
}

TEST(TimeLinks, EveryKindThatAMicroBatchPassesHasATime) {
  ModelConfig model = toy_model();
  model.vision.layers = 4;
  model.vision.features = FeatureLayer::penultimate;
  model.decoder.layers = 8;
  model.decoder.moe.every = 4;
  constexpr ToyShape pictures{.sequences = 2, .length = 13, .tiles = 1, .padding = 3};
  EXPECT_THAT(timed_kinds(model, pictures), ElementsAreArray(link_kind_list));
  EXPECT_THAT(timed_kinds(model, pictures, Recompute::blocks), ElementsAreArray(link_kind_list));
  EXPECT_THAT(timed_kinds(model, {.sequences = 1, .length = 9}),
              ElementsAre(LinkKind::lookup, LinkKind::dense_layer, LinkKind::sparse_layer,
                          LinkKind::final_norm, LinkKind::head));
  EXPECT_THAT(
      timed_kinds(text_model(3), {.sequences = 1, .length = 1}),
      ElementsAre(LinkKind::lookup, LinkKind::dense_layer, LinkKind::final_norm, LinkKind::head));
  model.decoder.moe.every = 1;
  EXPECT_THAT(
      timed_kinds(model, {.sequences = 1, .length = 9}),
      ElementsAre(LinkKind::lookup, LinkKind::sparse_layer, LinkKind::final_norm, LinkKind::head));
}

}  // namespace
}  // namespace orchard::testing
