// Softmax cross-entropy against an fp64 reference.
#include <limits>

#include "kernels/loss/loss.h"
#include "tests/kernels/cross_entropy_reference.h"
#include "tests/kernels/device_test.h"
#include "tests/kernels/simt_policy.h"

namespace orchard::testing {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

struct Case {
  DType dtype;  // of the gradient
  std::int64_t rows, vocab;
  int shift = 0;  // elements by which the logits lie off alignment
};

using CrossEntropyLoss = DeviceTest<Case>;

TEST_P(CrossEntropyLoss, MatchesReference) {
  const auto [dtype, rows, vocab, shift] = parameter();
  const std::vector<int> where = make_targets(rows, vocab);
  const float scale = 0.125f;
  // A spread of 4 makes single tokens likely, so that large and small probabilities both occur.
  Guarded logits = random_normal(DType::f32, {rows, vocab}, 1, 4);
  Guarded targets = integers({rows}, where), losses(DType::f32, {rows});
  Guarded d_logits(dtype, {rows, vocab}), factor = number(scale);
  OnDevice logits_d = on_device(logits, shift), targets_d = on_device(targets);
  OnDevice factor_d = on_device(factor);
  OnDevice losses_d = on_device(losses), d_logits_d = on_device(d_logits);
  CrossEntropy op{.logits = logits_d,
                  .targets = targets_d,
                  .scale = factor_d,
                  .losses = losses_d,
                  .d_logits = d_logits_d};
  run_repeatedly(stream(), op, {&losses_d, &d_logits_d});

  const auto n = static_cast<std::size_t>(vocab);
  // fp32: the logits' own size times a rounding, and a logarithm of a sum of `vocab` terms.
  const double fp32 = (16 + 2 * std::sqrt(vocab)) * unit_roundoff(DType::f32);
  expect_close(losses, reference_losses(logits.values(), n, where), fp32, "losses", 16);
  const Values d = reference_gradients(logits.values(), n, where, scale);
  expect_gradients_close(d_logits, d, n, where, scale, fp32);

  const Guarded first_losses = losses;
  op.d_logits = {};
  run_and_download(stream(), op, {&losses_d});
  EXPECT_TRUE(losses == first_losses) << "the loss depends on whether a gradient is wanted";
  if (dtype == DType::f32) {
    op.d_logits = logits_d.tensor();
    run_and_download(stream(), op, {&losses_d, &logits_d});
    EXPECT_TRUE(losses == first_losses && logits == d_logits) << "d_logits cannot alias logits";
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, CrossEntropyLoss,
    ::testing::Combine(every_device(),
                       ::testing::Values(Case{DType::f32, 1, 1}, Case{DType::f32, 7, 17},
                                         Case{DType::f32, 0, 8}, Case{DType::f32, 11, 2047},
                                         Case{DType::f32, 11, 2049}, Case{DType::f32, 5, 8192},
                                         Case{DType::f32, 3, 8192, 1}, Case{DType::f32, 3, 49152},
                                         Case{DType::f32, 2, 24517}, Case{DType::bf16, 6, 31},
                                         Case{DType::bf16, 6, 8209}, Case{DType::bf16, 3, 24576},
                                         Case{DType::bf16, 6, 2048, 2})),
    device_test_name<Case>);

TEST(CrossEntropyReference, GradientIsThatOfTheLoss) {
  const std::vector<int> where = {3, -1, 0};
  const Values logits = random_normal(DType::f32, {3, 6}, 1).values();
  expect_gradient(
      [&](const Values& at) {
        double total = 0;
        for (const double loss : reference_losses(at, 6, where)) total += 0.5 * loss;
        return total;
      },
      logits, reference_gradients(logits, 6, where, 0.5), "d_logits");
}

using CrossEntropyRange = DeviceTest<int>;  // the vocabulary

TEST_P(CrossEntropyRange, HugeLogitsAndMaskedTokensStayFinite) {
  const std::int64_t vocab = parameter();  // masked tokens fill whole chunks, the first included
  Guarded logits(DType::f32, {2, vocab}), losses(DType::f32, {2}), d(DType::f32, {2, vocab});
  for (std::int64_t i = 0; i < vocab; ++i) {
    logits.set(i, i < vocab - 500 ? -infinity : 1000.0);
    logits.set(vocab + i, i == 7 ? 3e38 : -3e38);
  }
  Guarded targets = integers({2}, std::vector<int>{static_cast<int>(vocab) - 300, 7});
  OnDevice logits_d = on_device(logits), targets_d = on_device(targets);
  OnDevice losses_d = on_device(losses), d_d = on_device(d);
  run_and_download(
      stream(),
      CrossEntropy{.logits = logits_d, .targets = targets_d, .losses = losses_d, .d_logits = d_d},
      {&losses_d, &d_d});
  // Differences of logits are exact: what is left is a few fp32 roundings of 6.2 and of 1/500.
  EXPECT_NEAR(losses.at(0), std::log(500.0), 2e-6);
  EXPECT_EQ(losses.at(1), 0);
  EXPECT_EQ(d.at(0), 0);
  EXPECT_NEAR(d.at(vocab - 1), 1.0 / 500, 1e-9);
  EXPECT_EQ(d.at(vocab + 7), 0);
}

TEST_P(CrossEntropyRange, ANaNLogitGivesANaNLoss) {
  const std::int64_t vocab = parameter();
  for (const std::int64_t at : {std::int64_t{0}, std::int64_t{5}, vocab / 2, vocab - 1}) {
    Guarded logits = zeros(DType::f32, {1, vocab}), losses(DType::f32, {1});
    Guarded targets = integers({1}, std::vector<int>{3});
    logits.set(at, std::nan(""));
    OnDevice logits_d = on_device(logits), targets_d = on_device(targets);
    OnDevice losses_d = on_device(losses);
    run_and_download(stream(),
                     CrossEntropy{.logits = logits_d, .targets = targets_d, .losses = losses_d},
                     {&losses_d});
    EXPECT_TRUE(std::isnan(losses.at(0))) << "at " << at;
  }
}

INSTANTIATE_TEST_SUITE_P(Vocabularies, CrossEntropyRange,
                         ::testing::Combine(every_device(), ::testing::Values(5000, 5003)),
                         device_test_name<int>);

// The host cannot see a wrong target on a GPU: it shows in the loss, and its row has no gradient.
TEST(CrossEntropyOnGpu, ATargetOutsideTheVocabularyGivesANaNLoss) {
  const auto device = make_policy_device();
  const auto stream = device->make_stream();
  for (const int wrong : {8, -2}) {
    Guarded logits = zeros(DType::f32, {2, 8}), losses(DType::f32, {2}), d = logits;
    Guarded targets = integers({2}, std::vector<int>{3, wrong});
    OnDevice logits_d(*stream, logits), targets_d(*stream, targets), losses_d(*stream, losses);
    OnDevice d_d(*stream, d);
    run_and_download(
        *stream,
        CrossEntropy{.logits = logits_d, .targets = targets_d, .losses = losses_d, .d_logits = d_d},
        {&losses_d, &d_d});
    EXPECT_NEAR(losses.at(0), std::log(8.0), 1e-6);
    EXPECT_TRUE(std::isnan(losses.at(1)));
    for (std::int64_t i = 8; i < 16; ++i) EXPECT_EQ(d.at(i), 0);
  }
}

TEST(CrossEntropyErrors, ATargetOutsideTheVocabularyIsNamedAndNothingIsWritten) {
  Guarded logits = zeros(DType::f32, {3, 8}), losses = random_normal(DType::f32, {3}, 1);
  const Guarded before = losses, logits_before = logits;
  for (const int wrong : {8, -2}) {
    Guarded targets = integers({3}, std::vector<int>{0, -1, wrong});
    EXPECT_EQ(error_of(CrossEntropy{
                  .logits = logits, .targets = targets, .losses = losses, .d_logits = logits}),
              fmt::format("CrossEntropy: row 2 has target {}, outside the vocabulary of 8 (-1 "
                          "means none)",
                          wrong));
    EXPECT_TRUE(losses == before && logits == logits_before);
  }
}

}  // namespace
}  // namespace orchard::testing
