// Softmax cross-entropy over the shards of a vocabulary against the fp64 reference of the whole.
#include "tests/kernels/sharded_cross_entropy_test.h"

#include <limits>

#include "tests/kernels/cross_entropy_reference.h"
#include "tests/kernels/simt_policy.h"

namespace orchard::testing {
namespace {

struct Case {
  DType dtype;  // of the gradient
  std::int64_t rows, columns;
  int shards;
};

using ShardedCrossEntropy = DeviceTest<Case>;

TEST_P(ShardedCrossEntropy, MatchesTheReferenceOfTheWhole) {
  const auto [dtype, rows, columns, shards] = parameter();
  const std::int64_t vocab = columns * shards;
  const std::vector<int> where = make_targets(rows, vocab);
  const float scale = 0.125f;
  const Guarded logits = random_normal(DType::f32, {rows, vocab}, 1, 4);
  Guarded targets = integers({rows}, where);
  const std::vector<LossShard> ranks =
      run_loss_shards(stream(), logits, targets, shards, dtype, scale);

  const auto n = static_cast<std::size_t>(vocab);
  // As for one rank, and for each shard one more exponential and product.
  const double fp32 = (16 + 2 * std::sqrt(vocab) + 4 * shards) * unit_roundoff(DType::f32);
  const Values losses = reference_losses(logits.values(), n, where);
  const Values d = reference_gradients(logits.values(), n, where, scale);
  for (int i = 0; i < shards; ++i) {
    const LossShard& rank = ranks[static_cast<std::size_t>(i)];
    expect_close(rank.losses(), losses, fp32, "losses", 16);
    EXPECT_TRUE(rank.losses() == ranks[0].losses()) << "ranks disagree";
    expect_gradients_close(rank.d_logits(), d, n, where, scale, fp32, i * columns);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, ShardedCrossEntropy,
    ::testing::Combine(every_device(),
                       ::testing::Values(Case{DType::f32, 1, 1, 2}, Case{DType::f32, 7, 17, 1},
                                         Case{DType::f32, 0, 8, 2}, Case{DType::f32, 11, 1023, 2},
                                         Case{DType::f32, 11, 683, 3}, Case{DType::f32, 3, 6144, 8},
                                         Case{DType::bf16, 6, 31, 2}, Case{DType::bf16, 6, 2053, 4},
                                         // more than shared memory keeps of a row
                                         Case{DType::bf16, 2, 24'600, 2})),
    device_test_name<Case>);

using ShardedCrossEntropyRange = DeviceTest<int>;  // shards

// One rank has masked tokens only, another the only large logit.
TEST_P(ShardedCrossEntropyRange, HugeLogitsAndMaskedShardsStayFinite) {
  constexpr std::int64_t vocab = 2000;
  constexpr double infinity = std::numeric_limits<double>::infinity();
  Guarded logits(DType::f32, {2, vocab});
  for (std::int64_t i = 0; i < vocab; ++i) {
    logits.set(i, i < 1500 ? -infinity : 1000.0);
    logits.set(vocab + i, i == 7 ? 3e38 : -3e38);
  }
  Guarded targets = integers({2}, std::vector<int>{1700, 7});
  for (const LossShard& rank :
       run_loss_shards(stream(), logits, targets, parameter(), DType::f32, 1)) {
    EXPECT_NEAR(rank.losses().at(0), std::log(500.0), 2e-6);
    EXPECT_EQ(rank.losses().at(1), 0);
    for (const double d : rank.d_logits().values()) EXPECT_LE(std::abs(d), 1);
  }
}

TEST_P(ShardedCrossEntropyRange, ANaNLogitGivesANaNLossOnEveryRank) {
  Guarded logits = zeros(DType::f32, {1, 64});
  logits.set(40, std::nan(""));
  Guarded targets = integers({1}, std::vector<int>{3});
  for (const LossShard& rank :
       run_loss_shards(stream(), logits, targets, parameter(), DType::f32, 1))
    EXPECT_TRUE(std::isnan(rank.losses().at(0)));
}

INSTANTIATE_TEST_SUITE_P(FourRanks, ShardedCrossEntropyRange,
                         ::testing::Combine(every_device(), ::testing::Values(4)),
                         device_test_name<int>);

// A GPU cannot refuse: the loss says so.
TEST(ShardedCrossEntropyOnGpu, ATargetOutsideTheVocabularyGivesANaNLossAndNoGradient) {
  const auto device = make_policy_device();
  const auto stream = device->make_stream();
  const Guarded logits = random_normal(DType::f32, {3, 64}, 1);
  Guarded targets = integers({3}, std::vector<int>{64, -2, 5});
  for (const LossShard& rank : run_loss_shards(*stream, logits, targets, 4, DType::f32, 1)) {
    EXPECT_TRUE(std::isnan(rank.losses().at(0)));
    EXPECT_TRUE(std::isnan(rank.losses().at(1)));
    EXPECT_FALSE(std::isnan(rank.losses().at(2)));
    for (std::int64_t i = 0; i < 2 * 16; ++i) EXPECT_EQ(rank.d_logits().at(i), 0);
  }
}

TEST(ShardedCrossEntropyErrors, ATargetOutsideTheVocabularyIsNamedAndNothingIsWritten) {
  Guarded logits = zeros(DType::f32, {3, 8}), statistics = random_normal(DType::f32, {3, 3}, 1);
  const Guarded before = statistics;
  for (const int wrong : {32, -2}) {
    Guarded targets = integers({3}, std::vector<int>{0, -1, wrong});
    EXPECT_EQ(error_of(SoftmaxOfShard{.logits = logits,
                                      .targets = targets,
                                      .shard = {.first_id = 8, .vocabulary = 32},
                                      .statistics = statistics}),
              fmt::format("SoftmaxOfShard: row 2 has target {}, outside the vocabulary of 32 (-1 "
                          "means none)",
                          wrong));
    EXPECT_TRUE(statistics == before);
  }
}

}  // namespace
}  // namespace orchard::testing
