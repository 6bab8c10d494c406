// Training in a pipeline over steps: both optimizers, checkpoints of one layout in another, a resume,
// evaluation, memory. Under mpirun, with up to four ranks.
#include <gmock/gmock.h>

#include <array>
#include <fstream>

#include "tests/comm/ranks_test.h"
#include "tests/message_of.h"
#include "tests/train/toy_training.h"
#include "train/link_timer.h"
#include "train/pipeline_cut.h"
#include "train/pipeline_pictures.h"

namespace orchard::testing {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;

ModelConfig model() {
  ModelConfig config;
  config.vision = {.layers = 2, .width = 32, .heads = 4, .mlp_width = 48, .patch = 2, .side = 6};
  config.connector = {.hidden = 12, .depth = 1, .out_side = 2};
  config.decoder = {.layers = 3,
                    .hidden = 24,
                    .ffn = 32,
                    .heads = 4,
                    .kv_heads = 2,
                    .head_dim = 8,
                    .vocabulary = 48,
                    .max_positions = 16};
  return config;
}

// Matrices are factored, and each block fills several buckets.
ReplicaOptions options_of(OptimizerKind kind, DType dtype = DType::f32) {
  return {.dtype = dtype,
          .optimizer = {.kind = kind, .factor_threshold = 8},
          .shards = {.bucket_bytes = 4096}};
}

constexpr OptimizerKind optimizers[] = {OptimizerKind::adamw, OptimizerKind::adafactor};

struct Case {
  Layout layout;
  PipelineOptions pipeline = {};

  PipelineStages stages() const {
    return cut_pipeline(model(), pipeline, layout.pipeline,
                        {.tokens = 12, .document_length = 6, .targets = 8, .tiles = 1});
  }
  std::string to_string() const { return layout.to_string() + ", " + stages().to_string(); }
};

// Of so many ranks; schedules come along in turn.
std::vector<Case> cases_of(int ranks) {
  std::vector<Case> cases{{Layout{}}};
  std::size_t next = 0;
  for (const int pp : {2, 4}) {
    for (const int tp : {1, 2}) {
      if (ranks % (pp * tp) != 0) continue;
      for (int i = 0; i < 3; ++i) {
        const ScheduleKind kind = schedule_kinds[next++ % std::size(schedule_kinds)];
        cases.push_back({{.tensor = tp, .pipeline = pp}, {.schedule = kind}});
      }
    }
  }
  return cases;
}

class PipelineTraining : public ::testing::Test {
 protected:
  void SetUp() override {
    if (world_->size() == 1) GTEST_SKIP() << "needs several ranks";
  }

  Training training(const Case& c, const ReplicaOptions& options) const {
    return {model(), options, *world_, c.layout, c.stages()};
  }

  std::unique_ptr<Communicator> world_ = session->world(), alone_ = make_single_communicator();
};

// Also that nothing is allocated after the first step.
TEST_F(PipelineTraining, LearnsWhatOneRankDoes) {
  // What the project promises of layouts in fp32: ranks only change the order of sums.
  constexpr double tolerance = 1e-5;
  constexpr std::int64_t steps = 8;
  for (const OptimizerKind kind : optimizers) {
    std::vector<StepReport> reference;
    Training alone(model(), options_of(kind), *alone_);
    for (std::int64_t step = 1; step <= steps; ++step) reference.push_back(alone.step(step));
    EXPECT_LT(reference.back().losses.loss, 0.95 * reference.front().losses.loss);
    for (const Case& c : cases_of(world_->size())) {
      SCOPED_TRACE(c.to_string());
      Training together = training(c, options_of(kind));
      const DeviceStatistics& memory = together.replica().device().statistics();
      std::int64_t allocations = 0;
      for (std::int64_t step = 1; step <= steps; ++step) {
        const StepReport &a = reference[static_cast<std::size_t>(step - 1)],
                         t = together.step(step);
        EXPECT_NEAR(t.losses.loss, a.losses.loss, tolerance * a.losses.loss) << step;
        EXPECT_NEAR(t.gradient_norm, a.gradient_norm, 10 * tolerance * a.gradient_norm) << step;
        if (step == 1) allocations = memory.allocations;
        EXPECT_EQ(memory.allocations, allocations) << "something grew in step " << step;
      }
    }
  }
}

std::vector<char> bytes_of(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// Each layout writes what the one before it wrote, bit for bit, and goes on as one rank does.
TEST_F(PipelineTraining, LayoutsReadEachOthersCheckpoints) {
  const SharedFolder folder(*world_);
  for (const OptimizerKind kind : optimizers) {
    const std::vector<Case> cases = cases_of(world_->size());
    Training first = training(cases.back(), options_of(kind));
    for (std::int64_t step = 1; step <= 3; ++step) first.step(step);
    first.save(folder / "first.h5");
    const double loss = first.step(4).losses.loss;
    std::filesystem::path last = folder / "first.h5";
    for (std::size_t i = 0; i < cases.size(); ++i) {
      SCOPED_TRACE(cases[i].to_string());
      Training next = training(cases[i], options_of(kind));
      next.load(last);
      last = folder / fmt::format("{}.h5", i);
      next.save(last);
      EXPECT_TRUE(bytes_of(last) == bytes_of(folder / "first.h5"));
      EXPECT_NEAR(next.step(4).losses.loss, loss, 1e-5 * loss);
    }
    world_->barrier();
  }
}

TEST_F(PipelineTraining, AResumedRunGoesOnBitForBit) {
  const SharedFolder folder(*world_);
  const std::filesystem::path file = folder / "c.h5";
  for (const Case& c : cases_of(world_->size())) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      SCOPED_TRACE(c.to_string());
      Training run = training(c, options_of(OptimizerKind::adafactor, dtype)),
               resumed = training(c, options_of(OptimizerKind::adafactor, dtype));
      for (std::int64_t step = 1; step <= 3; ++step) run.step(step);
      run.save(file);
      resumed.load(file);
      world_->barrier();
      for (std::int64_t step = 4; step <= 5; ++step)
        EXPECT_EQ(resumed.step(step).losses.loss, run.step(step).losses.loss);
      EXPECT_EQ(resumed.values(), run.values());
    }
  }
}

// Ranks that do not run the first link are given no patches at all.
TEST_F(PipelineTraining, OnlyTheFirstStageNeedsPictures) {
  for (const Case& c : cases_of(world_->size())) {
    SCOPED_TRACE(c.to_string());
    Training everywhere = training(c, options_of(OptimizerKind::adamw)),
             first_stage = training(c, options_of(OptimizerKind::adamw));
    const ParallelContext& ranks = first_stage.ranks();
    const bool has_stem = c.layout.pipeline == 1 || ranks.coordinates().pipeline == 0;
    ASSERT_EQ(picture_content(ranks) == PictureContent::whole, has_stem);
    const auto without_patches = [&](MicroBatch& batch, std::size_t) {
      if (!has_stem) batch.patches.clear();
    };
    for (std::int64_t step = 1; step <= 3; ++step)
      EXPECT_EQ(first_stage.step(step, without_patches).losses.loss,
                everywhere.step(step).losses.loss);
    EXPECT_EQ(first_stage.values(), everywhere.values());
    for (const ToyShape& shape : training_shapes) {
      MicroBatch batch = toy_micro_batch(model(), shape, "held out");
      const std::vector<float> wanted = everywhere.replica().evaluate(batch);
      without_patches(batch, 0);
      EXPECT_EQ(first_stage.replica().evaluate(batch), wanted);
    }
  }
}

// What the first stage found bad is without targets on all; no other document changes.
TEST_F(PipelineTraining, EveryStageHearsOfBadPictures) {
  for (const Case& c : cases_of(world_->size())) {
    SCOPED_TRACE(c.to_string());
    const ParallelContext ranks(*world_, c.layout, SequenceParallel::yes, c.stages());
    const bool finds_out = picture_content(ranks) == PictureContent::whole;
    std::vector<MicroBatch> batches;
    for (const ToyShape& shape : training_shapes)
      batches.push_back(toy_micro_batch(model(), shape, "bad"));
    std::vector<MicroBatch> wanted = batches;
    const int last = static_cast<int>(std::ssize(batches[0].document_offsets)) - 2;
    for (const auto& [batch, document] : {std::pair{0, 0}, {0, last}, {5, 0}}) {
      const auto b = static_cast<std::size_t>(batch);
      drop_targets(wanted[b], document);
      if (!finds_out) continue;
      batches[b].bad_documents.push_back(document);
      drop_targets(batches[b], document);
    }
    share_bad_documents(ranks, batches);
    for (std::size_t b = 0; b < batches.size(); ++b) {
      EXPECT_EQ(batches[b].targets, wanted[b].targets) << b;
      EXPECT_EQ(batches[b].target_count, wanted[b].target_count) << b;
    }
  }
}

// Times are those of the slowest rank, so that all cut alike.
TEST_F(PipelineTraining, RanksAgreeOnTheTimesOfLinks) {
  const std::unique_ptr<Device> device = make_cpu_device({.threads = 1});
  ModelConfig sparse = model();
  sparse.decoder.moe = {.experts = 4, .every = 2};
  const MicroBatch batch = toy_micro_batch(sparse, training_shapes[0], "timed");
  for (const Layout& layout :
       {Layout{.tensor = 2, .pipeline = 2}, Layout{.pipeline = 2, .expert = 2},
        Layout{.tensor = 2, .expert_tensor = 2, .tensor_chunks = 2}}) {
    SCOPED_TRACE(layout.to_string());
    const CostByKind seconds = time_links(*device, *world_, sparse, {.layout = layout}, batch);
    EXPECT_EQ(seconds.size(), std::size(link_kind_list));
    for (const auto& [kind, cost] : seconds) {
      std::array<double, 4> extremes{cost.forward, cost.backward, -cost.forward, -cost.backward};
      world_->max_on_host(extremes);
      EXPECT_EQ(extremes[0], -extremes[2]) << name_of(kind);
      EXPECT_EQ(extremes[1], -extremes[3]) << name_of(kind);
    }
  }
}

TEST_F(PipelineTraining, EveryStageLearnsTheLossesOfAnEvaluation) {
  Training alone(model(), options_of(OptimizerKind::adamw), *alone_);
  for (const Case& c : cases_of(world_->size())) {
    Training together = training(c, options_of(OptimizerKind::adamw));
    for (const ToyShape& shape : training_shapes) {
      const MicroBatch batch = toy_micro_batch(model(), shape, "held out");
      const std::vector<float> losses = together.replica().evaluate(batch),
                               wanted = alone.replica().evaluate(batch);
      ASSERT_EQ(losses.size(), wanted.size());
      ASSERT_EQ(std::ssize(losses), batch.target_count);
      for (std::size_t i = 0; i < losses.size(); ++i)
        EXPECT_NEAR(losses[i], wanted[i], 1e-5 * wanted[i]) << c.to_string();
    }
  }
}

TEST_F(PipelineTraining, ANaNIsTracedToTheLastStageOfItsPipeline) {
  for (const Case& c : cases_of(world_->size())) {
    Training run = training(c, options_of(OptimizerKind::adamw));
    run.step(1);
    const std::string message = message_of([&] {
      run.step(2, [](MicroBatch& batch, std::size_t index) {
        if (index == 0) batch.patches[0] = std::nanf("");
      });
    });
    const Mesh& mesh = run.ranks().mesh();
    const PipelineStages stages = c.stages();
    const int head = stages.place_of(stages.count() - 1).rank;
    const std::vector<int> pipeline = mesh.group(MeshGroup::pipeline, 0);
    EXPECT_THAT(message, HasSubstr("the loss is nan"));
    EXPECT_THAT(message, HasSubstr(mesh.name(pipeline[static_cast<std::size_t>(head)])));
    EXPECT_THAT(message, ContainsRegex("host values [0-9]+ of group dp"));
  }
}

}  // namespace
}  // namespace orchard::testing

int main(int argc, char** argv) {
  return orchard::testing::rank_tests_main(argc, argv);
}
