// Training with sharded optimizer state on data ranks: what one rank learns, and the same bits
// whether communication overlaps with backward or not, and after a resume. Training under mpirun.
#include <gmock/gmock.h>

#include "kernels/embedding/embedding.h"
#include "kernels/loss/loss.h"
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

// Reduce-scatters over data ranks that have been asked for when the last link of backward runs, the
// lookup's, in each micro-batch. The device's operation says when that is: it has no other observer.
struct Sent {
  const Communicator* replicas = nullptr;
  std::vector<std::int64_t> before_lookup;
};
Sent* sent = nullptr;
void (*lookup_backward)(Stream&, const EmbeddingBackward&) = nullptr;

std::int64_t buckets_sent(const Communicator& replicas) {
  return replicas.statistics(CommOp::reduce_scatter).calls;
}

TEST_F(ShardedTraining, BucketsLeaveWhileBackwardGoesOn) {
  if (world_->size() == 1) GTEST_SKIP() << "needs several ranks";
  for (const Overlap overlap : {Overlap::yes, Overlap::no}) {
    Training run(model(), options_of(OptimizerKind::adamw, DType::f32, overlap), *world_);
    const Communicator& replicas = run.ranks()[MeshGroup::data];
    Sent own{.replicas = &replicas};
    sent = &own;
    OperationTable& operations = run.replica().device().operations();
    lookup_backward = operations.find<EmbeddingBackward>();
    operations.add<EmbeddingBackward>([](Stream& stream, const EmbeddingBackward& op) {
      sent->before_lookup.push_back(buckets_sent(*sent->replicas));
      lookup_backward(stream, op);
    });
    const std::int64_t before = buckets_sent(replicas);
    run.step(1);
    sent = nullptr;

    // Final by then: the buckets behind the table, which is declared before the decoder. They leave
    // in their one order, so up to the first that is not.
    const std::vector<FlatBucket>& buckets = run.replica().shards().buckets();
    const std::size_t table = run.replica().store().find("embedding")->declared;
    const auto first_left = std::ranges::find_if(
        buckets, [&](const FlatBucket& bucket) { return bucket.first_declared <= table; });
    const std::int64_t early = first_left - buckets.begin();
    ASSERT_GT(early, 3);
    ASSERT_EQ(buckets_sent(replicas) - before, std::ssize(buckets));
    ASSERT_GT(own.before_lookup.size(), 1u) << "no micro-batches before the last";
    for (std::size_t m = 0; m < own.before_lookup.size(); ++m) {
      const bool leave = overlap == Overlap::yes && m + 1 == own.before_lookup.size();
      EXPECT_EQ(own.before_lookup[m] - before, leave ? early : 0) << "micro-batch " << m;
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

TEST_F(ShardedTraining, ANaNIsTracedToItsRankAndSpoilsNoWeight) {
  constexpr std::size_t poisoned = 5;  // has pictures
  Training run(model(), options_of(OptimizerKind::adamw), *world_);
  run.step(1);
  const std::vector<std::byte> before = run.values();
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
  EXPECT_EQ(run.values(), before);
}

// Its gradients are finite, so nothing but the losses tells.
TEST_F(ShardedTraining, AnInfiniteLossAloneIsAnErrorOnEveryRank) {
  Training run(model(), options_of(OptimizerKind::adamw), *world_);
  run.step(1);
  static void (*original)(Stream&, const CrossEntropy&);
  OperationTable& operations = run.replica().device().operations();
  original = operations.find<CrossEntropy>();
  if (world_->rank() == 0) {
    operations.add<CrossEntropy>([](Stream& stream, const CrossEntropy& op) {
      original(stream, op);
      op.losses.data<float>()[0] = HUGE_VALF;
    });
  }
  const std::string message = message_of([&] { run.step(2); });
  EXPECT_THAT(message, HasSubstr("the loss is inf"));
  EXPECT_THAT(message, HasSubstr(Mesh(world_->size(), {}).name(0)));
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
