// Softmax cross-entropy against an fp64 reference.
#include <limits>

#include "kernels/loss/loss.h"
#include "tests/kernels/cross_entropy_reference.h"

namespace orchard::testing {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

struct Case {
  DType dtype;  // of the gradient
  std::int64_t rows, vocab;
};

class CrossEntropyLoss : public ::testing::TestWithParam<Case> {};

TEST_P(CrossEntropyLoss, MatchesReference) {
  const auto [dtype, rows, vocab] = GetParam();
  const std::vector<int> where = make_targets(rows, vocab);
  const float scale = 0.125f;
  // A spread of 4 makes single tokens likely, so that large and small probabilities both occur.
  Guarded logits = random_normal(DType::f32, {rows, vocab}, 1, 4);
  Guarded targets = integers({rows}, where), losses(DType::f32, {rows});
  Guarded d_logits(dtype, {rows, vocab});
  CrossEntropy op{
      .logits = logits, .targets = targets, .scale = scale, .losses = losses, .d_logits = d_logits};
  run_repeatedly(op, {&losses, &d_logits});

  const auto n = static_cast<std::size_t>(vocab);
  // fp32: the logits' own size times a rounding, and a logarithm of a sum of `vocab` terms.
  const double fp32 = (16 + 2 * std::sqrt(vocab)) * unit_roundoff(DType::f32);
  expect_close(losses, reference_losses(logits.values(), n, where), fp32, "losses", 16);
  const Values d = reference_gradients(logits.values(), n, where, scale);
  expect_gradients_close(d_logits, d, n, where, scale, fp32);

  const auto stream = cpu_device().make_stream();
  const Guarded first_losses = losses;
  op.d_logits = {};
  run(*stream, op);
  EXPECT_TRUE(losses == first_losses) << "the loss depends on whether a gradient is wanted";
  if (dtype == DType::f32) {
    op.d_logits = logits.tensor();
    run(*stream, op);
    EXPECT_TRUE(losses == first_losses && logits == d_logits) << "d_logits cannot alias logits";
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, CrossEntropyLoss,
                         ::testing::Values(Case{DType::f32, 1, 1}, Case{DType::f32, 7, 17},
                                           Case{DType::f32, 0, 8}, Case{DType::f32, 11, 2047},
                                           Case{DType::f32, 11, 2049}, Case{DType::f32, 5, 8192},
                                           Case{DType::f32, 3, 49152}, Case{DType::bf16, 6, 31},
                                           Case{DType::bf16, 6, 8209}));

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

TEST(CrossEntropyRange, HugeLogitsAndMaskedTokensStayFinite) {
  constexpr std::int64_t vocab = 5000;  // masked tokens fill whole chunks, the first included
  Guarded logits(DType::f32, {2, vocab}), losses(DType::f32, {2}), d(DType::f32, {2, vocab});
  for (std::int64_t i = 0; i < vocab; ++i) {
    logits.set(i, i < 4500 ? -infinity : 1000.0);
    logits.set(vocab + i, i == 7 ? 3e38 : -3e38);
  }
  Guarded targets = integers({2}, std::vector<int>{4700, 7});
  run(*cpu_device().make_stream(),
      CrossEntropy{.logits = logits, .targets = targets, .losses = losses, .d_logits = d});
  // Differences of logits are exact: what is left is a few fp32 roundings of 6.2 and of 1/500.
  EXPECT_NEAR(losses.at(0), std::log(500.0), 2e-6);
  EXPECT_EQ(losses.at(1), 0);
  EXPECT_EQ(d.at(0), 0);
  EXPECT_NEAR(d.at(4999), 1.0 / 500, 1e-9);
  EXPECT_EQ(d.at(vocab + 7), 0);
}

TEST(CrossEntropyRange, ANaNLogitGivesANaNLoss) {
  for (const std::int64_t at : {0, 5, 2050, 4999}) {
    Guarded logits = zeros(DType::f32, {1, 5000}), losses(DType::f32, {1});
    Guarded targets = integers({1}, std::vector<int>{3});
    logits.set(at, std::nan(""));
    run(*cpu_device().make_stream(),
        CrossEntropy{.logits = logits, .targets = targets, .losses = losses});
    EXPECT_TRUE(std::isnan(losses.at(0))) << "at " << at;
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
