// The loss, of a whole vocabulary and of its shards: errors are at most twice those of the same formula in
// the same precision (same_precision.h). On a GPU of any architecture they are the kernels of sm_80.
#include "tests/kernels/cross_entropy_reference.h"
#include "tests/kernels/same_precision.h"
#include "tests/kernels/sharded_cross_entropy_test.h"

namespace orchard::testing {
namespace {

constexpr DType f32 = DType::f32, b16 = DType::bf16;

struct LossCase {
  DType dtype;  // of the gradient
  std::int64_t rows, vocab;
  int shards = 1;
};

using Loss = DeviceTest<LossCase>;

TEST_P(Loss, ErrsAtMostTwiceAsMuchAsThePlainFormula) {
  const auto& [dtype, rows, vocab, shards] = parameter();
  const auto n = static_cast<std::size_t>(vocab);
  const std::vector<int> where = make_targets(rows, vocab);
  constexpr float scale = 0.1f;
  // A spread of 4 makes single tokens likely, so that large and small probabilities both occur.
  Guarded logits = random_normal(f32, {rows, vocab}, 1, 4), targets = integers({rows}, where);
  Guarded losses(f32, {rows}), d_logits(dtype, {rows, vocab}), factor = number(scale);
  OnDevice factor_d = on_device(factor);
  OnDevice logits_d = on_device(logits), targets_d = on_device(targets);
  OnDevice losses_d = on_device(losses), d_logits_d = on_device(d_logits);
  run_and_download(stream(),
                   CrossEntropy{.logits = logits_d,
                                .targets = targets_d,
                                .scale = factor_d,
                                .losses = losses_d,
                                .d_logits = d_logits_d},
                   {&losses_d, &d_logits_d});
  const std::vector<double> exact = values_as<double>(logits);
  const std::vector<float> plain = values_as<float>(logits);
  expect_twice(losses, reference_losses(exact, n, where), reference_losses(plain, n, where),
               "losses");
  expect_twice(d_logits, reference_gradients(exact, n, where, scale),
               reference_gradients(plain, n, where, scale), "d_logits");
}

// Rows that shared memory holds and longer ones, aligned and not.
INSTANTIATE_TEST_SUITE_P(
    Shapes, Loss,
    ::testing::Combine(every_device(),
                       ::testing::Values(LossCase{f32, 70, 257}, LossCase{f32, 11, 8192},
                                         LossCase{f32, 6, 49152}, LossCase{b16, 6, 8209},
                                         LossCase{b16, 6, 24576})),
    device_test_name<LossCase>);

using ShardedLoss = DeviceTest<LossCase>;

TEST_P(ShardedLoss, ErrsAtMostTwiceAsMuchAsThePlainFormula) {
  const auto& [dtype, rows, vocab, shards] = parameter();
  const std::vector<int> where = make_targets(rows, vocab);
  constexpr float scale = 0.1f;
  const Guarded logits = random_normal(f32, {rows, vocab}, 1, 4);
  Guarded targets = integers({rows}, where);
  const std::vector<LossShard> ranks =
      run_loss_shards(stream(), logits, targets, shards, dtype, scale);
  // What the ranks have of d_logits, in one tensor.
  Guarded d_logits(dtype, {rows, vocab});
  const std::int64_t columns = vocab / shards;
  for (std::int64_t i = 0; i < d_logits.size(); ++i) {
    const auto rank = static_cast<std::size_t>(i % vocab / columns);
    d_logits.set(i, ranks[rank].d_logits().at(i / vocab * columns + i % columns));
  }
  const auto n = static_cast<std::size_t>(vocab), cuts = static_cast<std::size_t>(shards);
  const ShardedLossReference<double> exact(values_as<double>(logits), n, cuts, where, scale);
  const ShardedLossReference<float> plain(values_as<float>(logits), n, cuts, where, scale);
  expect_twice(ranks[0].losses(), exact.losses, plain.losses, "losses");
  expect_twice(d_logits, exact.d_logits, plain.d_logits, "d_logits");
}

// Four rows, which all have targets.
INSTANTIATE_TEST_SUITE_P(Shapes, ShardedLoss,
                         ::testing::Combine(every_device(),
                                            ::testing::Values(LossCase{f32, 4, 2049, 3},
                                                              LossCase{f32, 4, 8192, 8},
                                                              LossCase{b16, 4, 2064, 4})),
                         device_test_name<LossCase>);

}  // namespace
}  // namespace orchard::testing
