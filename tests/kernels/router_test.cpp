// The router against an fp64 reference: choices, capacity, statistics, losses and gradient.
#include "tests/kernels/router_test.h"

#include "tests/kernels/router_reference.h"

namespace orchard::testing {
namespace {

using Case = RouterCase;
using Forward = RouterRun;
using Reference = RouterReference<double>;
const double bound = router_bound;

class Router : public DeviceTest<Case> {
 protected:
  Guarded logits() const {
    return random_normal(DType::f32, {parameter().tokens(), parameter().experts}, 7, 1.5);
  }

  void expect_forward() {
    const Case& c = parameter();
    const Forward actual(stream(), c, logits());
    const Reference expected(c, logits().values());
    expect_close(actual.probabilities, expected.p, bound, "probabilities");
    expect_close(actual.log_sum_exp, expected.log_sum_exp, bound, "log_sum_exp");
    EXPECT_EQ(actual.chosen.values(), expected.chosen);
    EXPECT_EQ(actual.experts.values(), expected.kept);
    EXPECT_EQ(actual.counts.values(), expected.counts);
    expect_close(actual.gates, expected.gates, bound, "gates");
    expect_close(actual.margins, expected.margins, bound, "margins", 1.0);  // difference of p <= 1
    expect_close(actual.fractions, expected.fractions, bound, "choice_fractions");
    expect_close(actual.balance_loss, expected.balance_loss, bound, "balance_loss");
    expect_close(actual.z_loss, expected.z_loss, 2 * bound, "z_loss");  // a square: twice the error
    EXPECT_TRUE(actual == Forward(stream(), c, logits())) << "two runs differ";
  }
};

TEST_P(Router, ForwardMatchesReference) {
  expect_forward();
}

// More tokens than the finite differences of the other tests can afford.
class LongRouter : public Router {};
TEST_P(LongRouter, ForwardMatchesReference) {
  expect_forward();
}

TEST_P(Router, ReplayOfTheOwnChoicesChangesNothing) {
  const Case& c = parameter();
  const Forward first(stream(), c, logits());
  const Forward again(stream(), c, logits(), &first.chosen);
  EXPECT_TRUE(first == again);
}

TEST_P(Router, BackwardMatchesFiniteDifferences) {
  const Case& c = parameter();
  Forward forward(stream(), c, logits());
  Guarded d_gates = random_normal(DType::f32, {c.tokens(), c.k}, 8);
  const RouterLossScales scales{.balance = 0.7f, .z = 0.03f};
  const Guarded d_logits = run_router_backward(stream(), c, forward, d_gates, scales);

  // The choices, and with them f_e and the drops, are held fixed, as the gradient holds them.
  const std::vector<double> chosen = forward.chosen.values();
  const auto total = [&](const std::vector<double>& at) {
    const Reference r(c, at, &chosen);
    double sum = 0;
    for (std::size_t i = 0; i < r.gates.size(); ++i) {
      sum += d_gates.at(static_cast<std::int64_t>(i)) * r.gates[i];
    }
    for (const double loss : r.balance_loss) sum += scales.balance * loss;
    for (const double loss : r.z_loss) sum += scales.z * loss;
    return sum;
  };
  std::vector<double> x = forward.logits.values(), expected(x.size());
  constexpr double step = 1e-4;  // truncation 1e-8, cancellation 1e-16·total/1e-4: both below 1e-7
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double middle = x[i];
    x[i] = middle + step;
    const double above = total(x);
    x[i] = middle - step;
    expected[i] = (above - total(x)) / (2 * step);
    x[i] = middle;
  }
  // Terms of the size of d_gates (about 1) cancel in p·(d_p - Σ p·d_p).
  expect_close(d_logits, expected, 2 * bound, "d_logits", 1.0);

  EXPECT_TRUE(d_logits == run_router_backward(stream(), c, forward, d_gates, scales))
      << "two runs differ";
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, Router,
    ::testing::Combine(
        every_device(),
        ::testing::Values(
            Case{1, 1, 0, BalanceCounts::first_choice, {1}, {1}},
            Case{2, 2, 1.0f, BalanceCounts::first_choice, {9, 3}, {9, 3}},
            Case{8, 2, 0, BalanceCounts::first_choice, {33}, {33}},
            Case{100, 4, 1.0f, BalanceCounts::first_choice, {20}, {20}},
            Case{8, 2, 1.0f, BalanceCounts::first_choice, {20, 1, 5, 0, 13}, {17, 1, 0, 0, 13}},
            Case{8, 1, 0.5f, BalanceCounts::all_choices, {29}, {29}},
            Case{17, 3, 1.25f, BalanceCounts::all_choices, {23, 6}, {19, 6}},
            Case{64, 8, 2.0f, BalanceCounts::all_choices, {12}, {11}},
            Case{130, 5, 0, BalanceCounts::first_choice, {7}, {7}},
            Case{8, 2, 2.0f, BalanceCounts::first_choice, {0}, {0}})),
    device_test_name<Case>);

// More sequences than a warp has lanes.
std::vector<int> many_lengths() {
  std::vector<int> lengths(40);
  for (std::size_t s = 0; s < lengths.size(); ++s) lengths[s] = static_cast<int>(s % 4);
  return lengths;
}

// Several slices a sequence, more than one thread has in flight, and as many experts and choices as the
// GPU kernels take.
INSTANTIATE_TEST_SUITE_P(
    Shapes, LongRouter,
    ::testing::Combine(
        every_device(),
        ::testing::Values(
            Case{40, 2, 1.0f, BalanceCounts::first_choice, {150, 64, 65}, {131, 64, 1}},
            Case{256, 8, 0.75f, BalanceCounts::all_choices, {70}, {66}},
            Case{33, 3, 0, BalanceCounts::all_choices, {0, 129, 0}, {0, 128, 0}},
            Case{8, 2, 0.5f, BalanceCounts::first_choice, {1300}, {1290}},
            Case{129, 1, 1.0f, BalanceCounts::all_choices, {1100}, {1090}},
            Case{2, 1, 1.0f, BalanceCounts::first_choice, many_lengths(), many_lengths()})),
    device_test_name<Case>);

}  // namespace
}  // namespace orchard::testing
