// Training with sharded optimizer state on data ranks: what one rank learns, and the same bits
// whether communication overlaps with backward or not, and after a resume. Training under mpirun.
#include <gmock/gmock.h>

#include "tests/comm/ranks_test.h"
#include "tests/message_of.h"
#include "tests/train/toy_training.h"

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

ReplicaOptions options_of(OptimizerKind kind, DType dtype = DType::f32,
                          Overlap overlap = Overlap::yes) {
  // Threshold and buckets so small that matrices are factored and each block fills several.
  return {.dtype = dtype,
          .optimizer = {.kind = kind, .factor_threshold = 8},
          .shards = {.bucket_bytes = 4096},
          .overlap = overlap};
}

class ShardedTraining : public ::testing::Test {
 protected:
  std::unique_ptr<Communicator> world_ = session->world(), alone_ = make_single_communicator();
};

TEST_F(ShardedTraining, LossesAreThoseOfOneRank) {
  // What the project promises of layouts in fp32: ranks only change the order of sums.
  constexpr double tolerance = 1e-5;
  for (const OptimizerKind kind : {OptimizerKind::adamw, OptimizerKind::adafactor}) {
    Training together(model(), options_of(kind), *world_),
        alone(model(), options_of(kind), *alone_);
    double first = 0, last = 0;
    for (std::int64_t step = 1; step <= 20; ++step) {
      const StepReport a = alone.step(step), t = together.step(step);
      EXPECT_NEAR(t.losses.loss, a.losses.loss, tolerance * a.losses.loss) << step;
      EXPECT_NEAR(t.gradient_norm, a.gradient_norm, 10 * tolerance * a.gradient_norm) << step;
      (step == 1 ? first : last) = a.losses.loss;
    }
    EXPECT_LT(last, 0.9 * first) << "nothing was learnt that could differ";
  }
}

TEST_F(ShardedTraining, OverlapAndRepetitionChangeNoBit) {
  for (const OptimizerKind kind : {OptimizerKind::adamw, OptimizerKind::adafactor}) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      Training overlapped(model(), options_of(kind, dtype), *world_),
          again(model(), options_of(kind, dtype), *world_),
          plain(model(), options_of(kind, dtype, Overlap::no), *world_);
      for (std::int64_t step = 1; step <= 4; ++step) {
        const StepReport report = overlapped.step(step);
        EXPECT_EQ(again.step(step).losses.loss, report.losses.loss);
        EXPECT_EQ(plain.step(step).losses.loss, report.losses.loss);
      }
      EXPECT_EQ(again.values(), overlapped.values());
      EXPECT_EQ(plain.values(), overlapped.values());
    }
  }
}

TEST_F(ShardedTraining, EveryRankHasTheSameValues) {
  Training run(model(), options_of(OptimizerKind::adamw, DType::bf16), *world_);
  run.step(1);
  std::vector<std::byte> mine = run.values(), firsts = mine;
  const auto device = make_cpu_device({.threads = 1});
  const auto stream = device->make_stream();
  world_
      ->broadcast(*stream, Tensor(firsts.data(), DType::u8, {std::ssize(firsts)}, DeviceKind::cpu),
                  0)
      .wait(*stream);
  EXPECT_EQ(mine, firsts);
}

TEST_F(ShardedTraining, ANaNIsTracedToItsRank) {
  constexpr std::size_t poisoned = 5;  // has pictures
  Training run(model(), options_of(OptimizerKind::adamw), *world_);
  run.step(1);
  const std::string message = message_of([&] {
    run.step(2, [](MicroBatch& batch, std::size_t index) {
      if (index == poisoned) batch.patches[0] = std::nanf("");
    });
  });
  const auto share = std::size(training_shapes) / static_cast<std::size_t>(world_->size());
  const auto rank = static_cast<int>(poisoned / share);
  EXPECT_THAT(message, HasSubstr("the loss is nan"));
  EXPECT_THAT(message, HasSubstr(Mesh(world_->size(), {}).name(rank)));
  EXPECT_THAT(message, ContainsRegex("host values [0-9]+ of group dp"));
}

TEST_F(ShardedTraining, AResumedRunGoesOnBitForBit) {
  const SharedFolder folder(*world_);
  const std::filesystem::path file = folder / "c.h5";
  for (const OptimizerKind kind : {OptimizerKind::adamw, OptimizerKind::adafactor}) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      Training run(model(), options_of(kind, dtype), *world_),
          resumed(model(), options_of(kind, dtype), *world_);
      for (std::int64_t step = 1; step <= 3; ++step) run.step(step);
      run.save(file);
      resumed.load(file);
      world_->barrier();
      for (std::int64_t step = 4; step <= 6; ++step)
        EXPECT_EQ(resumed.step(step).losses.loss, run.step(step).losses.loss);
      EXPECT_EQ(resumed.values(), run.values());
    }
  }
}

}  // namespace
}  // namespace orchard::testing

int main(int argc, char** argv) {
  return orchard::testing::rank_tests_main(argc, argv);
}
