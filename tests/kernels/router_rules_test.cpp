// The router's rules, one by one, in cases small enough to work out by hand.
#include <omp.h>

#include <variant>

#include "tests/kernels/router_test.h"
#include "tests/message_of.h"

namespace orchard::testing {
namespace {

using Case = RouterCase;
using Forward = RouterRun;
const double bound = router_bound;

using RouterRules = DeviceTest<std::monostate>;

Case one_sequence(std::int64_t tokens, std::int64_t experts, int k, float factor) {
  const int n = static_cast<int>(tokens);
  return {experts, k, factor, BalanceCounts::first_choice, {n}, {n}};
}

TEST_P(RouterRules, CapacityKeepsTheFirstTokensOfACrowdedExpert) {
  const Case c = one_sequence(50, 40, 1, 2.5f);  // capacity 3
  Guarded logits = zeros(DType::f32, {50, 40});
  for (std::int64_t t = 0; t < 50; ++t) logits.set(t * 40 + 7, 4);
  const Forward f(stream(), c, logits);
  for (std::int64_t t = 0; t < 50; ++t) {
    EXPECT_EQ(f.chosen.at(t), 7);
    EXPECT_EQ(f.experts.at(t), t < 3 ? 7 : -1) << "token " << t;
    EXPECT_EQ(f.gates.at(t) == 0, t >= 3) << "token " << t;
  }
  EXPECT_EQ(f.counts.at(7), 50);
  EXPECT_EQ(f.counts.at(40 + 7), 3);
}

TEST_P(RouterRules, FirstChoicesGoBeforeSecondOnes) {
  // Capacity 2 of expert 0: token 0 and 1 want it second, tokens 2 and 3 first.
  const Case c = one_sequence(4, 4, 2, 2.0f);
  Guarded logits = zeros(DType::f32, {4, 4});
  const int first[] = {1, 2, 0, 0}, second[] = {0, 0, 3, 3};
  for (std::int64_t t = 0; t < 4; ++t) {
    logits.set(t * 4 + first[t], 3), logits.set(t * 4 + second[t], 2);
  }
  const Forward f(stream(), c, logits);
  EXPECT_EQ(f.experts.values(), (std::vector<double>{1, -1, 2, -1, 0, 3, 0, 3}));
  // Not renormalised: the surviving gate of token 0 stays e^3 / (e^3 + e^2).
  EXPECT_NEAR(f.gates.at(0), 1 / (1 + std::exp(-1.0)), bound);
}

TEST_P(RouterRules, CapacityCountsRealTokensOfOneSequence) {
  // 8 real tokens of 16 at factor 1 and 8 experts: one each, in each of the two sequences alike.
  const Case c{8, 1, 1.0f, BalanceCounts::first_choice, {16, 16}, {8, 8}};
  const Forward f(stream(), c, zeros(DType::f32, {32, 8}));
  for (std::int64_t t = 0; t < 32; ++t) {
    EXPECT_EQ(f.chosen.at(t), t % 16 < 8 ? 0 : -1) << "token " << t;
    EXPECT_EQ(f.experts.at(t), t % 16 == 0 ? 0 : -1) << "token " << t;
  }
}

TEST_P(RouterRules, TiesGoToTheLowerExpert) {
  const Case c = one_sequence(1, 9, 3, 0);
  Guarded logits = zeros(DType::f32, {1, 9});
  EXPECT_EQ(Forward(stream(), c, logits).chosen.values(), (std::vector<double>{0, 1, 2}));
  logits.set(4, 1), logits.set(8, 1);
  const Forward f(stream(), c, logits);
  EXPECT_EQ(f.chosen.values(), (std::vector<double>{4, 8, 0}));
  EXPECT_EQ(f.margins.at(0), 0) << "experts 1 ... 3 tie with the last choice";
}

// Argmax, argmax of the rest, two gates: AXLearn's top-2, written down apart from the general k.
TEST_P(RouterRules, GeneralTopKWithTwoIsTop2) {
  const Case c = one_sequence(40, 11, 2, 0);
  const Guarded logits = random_normal(DType::f32, {40, 11}, 3);
  const Forward f(stream(), c, logits);
  for (std::int64_t t = 0; t < 40; ++t) {
    const std::vector<double> all = f.probabilities.values();
    std::vector<double> p(all.begin() + t * 11, all.begin() + (t + 1) * 11);
    const auto e1 = std::max_element(p.begin(), p.end()) - p.begin();
    const double p1 = std::exchange(p[static_cast<std::size_t>(e1)], -1.0);
    const auto e2 = std::max_element(p.begin(), p.end()) - p.begin();
    const double p2 = p[static_cast<std::size_t>(e2)];
    EXPECT_EQ(f.chosen.at(2 * t), static_cast<double>(e1));
    EXPECT_EQ(f.chosen.at(2 * t + 1), static_cast<double>(e2));
    EXPECT_NEAR(f.gates.at(2 * t), p1 / (p1 + p2 + 1e-9), bound);
    EXPECT_NEAR(f.gates.at(2 * t + 1), p2 / (p1 + p2 + 1e-9), bound);
  }
}

TEST_P(RouterRules, UniformRoutingGivesBalanceOne) {
  for (const BalanceCounts counts : {BalanceCounts::first_choice, BalanceCounts::all_choices}) {
    const Case c{8, 2, 0, counts, {24}, {24}};
    Guarded logits = zeros(DType::f32, {24, 8});
    for (std::int64_t t = 0; t < 24; ++t) {
      logits.set(t * 8 + t % 8, 2), logits.set(t * 8 + (t + 3) % 8, 1);
    }
    EXPECT_NEAR(Forward(stream(), c, logits).balance_loss.at(0), 1.0, bound);
  }
}

TEST_P(RouterRules, ReplayTakesTheGivenExpertsAndReportsNegativeMargins) {
  const Case c = one_sequence(3, 5, 2, 0);
  const Guarded logits = random_normal(DType::f32, {3, 5}, 4);
  const Forward own(stream(), c, logits);
  Guarded replay = own.chosen;
  double worst = 0;  // token 1 is made to use the expert it likes least, as its second choice
  for (std::int64_t e = 1; e < 5; ++e) {
    if (logits.at(5 + e) < logits.at(5 + static_cast<std::int64_t>(worst)))
      worst = static_cast<double>(e);
  }
  replay.set(3, worst);
  const Forward forced(stream(), c, logits, &replay);
  EXPECT_EQ(forced.chosen.values(), replay.values());
  EXPECT_LT(forced.margins.at(1), 0);
  EXPECT_EQ(forced.margins.at(0), own.margins.at(0));
}

TEST_P(RouterRules, NanLogitsKeepChoicesLegalAndShowInTheLoss) {
  const Case c = one_sequence(3, 4, 2, 1.0f);
  Guarded logits = random_normal(DType::f32, {3, 4}, 5);
  logits.set(6, std::nan(""));
  const Forward f(stream(), c, logits);
  EXPECT_EQ(f.chosen.at(2), 0);
  EXPECT_EQ(f.chosen.at(3), 1);
  EXPECT_TRUE(std::isnan(f.z_loss.at(0)));
}

INSTANTIATE_TEST_SUITE_P(AllDevices, RouterRules,
                         ::testing::Combine(every_device(), ::testing::Values(std::monostate{})),
                         device_test_name<std::monostate>);

TEST(RouterCapacity, FollowsThePublishedExamples) {
  EXPECT_EQ(expert_capacity(50, 2.5f, 40), 3);
  EXPECT_EQ(expert_capacity(8192, 2.5f, 40), 512);
  EXPECT_EQ(expert_capacity(3, 1.0f, 40), 1) << "at least one token";
  EXPECT_EQ(expert_capacity(0, 2.0f, 8), 1);
  EXPECT_EQ(expert_capacity(100, 0.9f, 9), 10) << "0.9f stands for the decimal 0.9";
}

TEST(RouterCapacity, BoundsWhatAnyRowsCanKeepOfAnExpert) {
  const CapacityRule rule{.factor = 2, .experts = 8, .length = 24};  // C = 6
  EXPECT_EQ(most_kept_choices(rule, 0, 72), 18) << "three sequences";
  EXPECT_EQ(most_kept_choices(rule, 24, 48), 6) << "the second one";
  EXPECT_EQ(most_kept_choices(rule, 30, 34), 4) << "no more than rows";
  EXPECT_EQ(most_kept_choices(rule, 22, 51), 2 + 6 + 3) << "ends of two, all of one";
  EXPECT_EQ(most_kept_choices(rule, 5, 5), 0);
  EXPECT_EQ(most_kept_choices({.factor = 0.1f, .experts = 8, .length = 4}, 0, 12), 3) << "C = 1";

  // Against the router: all rows want expert 0 first, or some of them second.
  const auto stream = cpu_device().make_stream();
  const std::int64_t length = 24, sequences = 3;
  for (const float factor : {0.3f, 1.0f, 1.25f, 2.0f}) {
    for (const int second : {1, 2, 5}) {
      for (const int padding : {0, 1, 20}) {
        const int n = static_cast<int>(length);
        const Case c{8, 2, factor, BalanceCounts::first_choice, {n, n, n}, {n, n - padding, n}};
        Guarded logits = random_normal(DType::f32, {c.tokens(), 8}, 3);
        for (std::int64_t t = 0; t < c.tokens(); ++t) {
          logits.set(t * 8, 20);
          if (t % second == 1) logits.set(t * 8 + 3, 25);
        }
        const Forward f(*stream, c, logits);
        bool reached = false;
        for (std::int64_t begin = 0; begin < c.tokens(); ++begin) {
          for (std::int64_t end = begin, kept = 0; end < c.tokens(); ++end) {
            kept += f.experts.at(2 * end) == 0 || f.experts.at(2 * end + 1) == 0;
            const std::int64_t most = most_kept_choices(
                {.factor = factor, .experts = 8, .length = length}, begin, end + 1);
            ASSERT_LE(kept, most) << "rows " << begin << " ... " << end;
            reached |= begin == 0 && end + 1 == length * sequences && kept == most;
          }
        }
        if (padding == 0) {
          EXPECT_TRUE(reached) << factor << ", " << second;
        }
      }
    }
  }
}

TEST(RouterOnGpu, RoutesAlikeInEveryOrderOfThreads) {
  const Case c{40, 2, 1.0f, BalanceCounts::all_choices, {70, 9}, {67, 9}};
  const Guarded logits = random_normal(DType::f32, {79, 40}, 9);
  expect_same_in_every_thread_order([&](Stream& stream) {
    const Forward f(stream, c, logits);
    return std::vector<Guarded>{f.probabilities, f.log_sum_exp, f.chosen,    f.experts,
                                f.gates,         f.margins,     f.fractions, f.balance_loss,
                                f.z_loss,        f.counts};
  });
}

TEST(RouterErrors, NameTheReplayedToken) {
  const auto stream = cpu_device().make_stream();
  const Case c = one_sequence(2, 4, 2, 0);
  const std::vector<int> out_of_range = {0, 1, 2, 4}, repeated = {0, 1, 3, 3};
  for (const auto& values : {out_of_range, repeated}) {
    const Guarded replay = integers({2, 2}, values);
    const std::string message = message_of([&] {
      const Forward f(*stream, c, zeros(DType::f32, {2, 4}), &replay);
    });
    EXPECT_NE(message.find("replay of token 1"), std::string::npos) << message;
  }
}

TEST(RouterErrors, RefuseMoreChoicesThanExperts) {
  const auto stream = cpu_device().make_stream();
  EXPECT_THROW(Forward(*stream, one_sequence(2, 3, 4, 0), zeros(DType::f32, {2, 3})), Error);
  EXPECT_THROW(Forward(*stream, one_sequence(2, 16, 9, 0), zeros(DType::f32, {2, 16})), Error);
}

TEST(RouterErrors, RefuseMoreRealTokensThanASequenceHas) {
  const auto stream = cpu_device().make_stream();
  const Case c{4, 1, 0, BalanceCounts::first_choice, {3, 3}, {3, 4}};
  EXPECT_THROW(Forward(*stream, c, zeros(DType::f32, {6, 4})), Error);
}

TEST(RouterDeterminism, DoesNotDependOnTheNumberOfThreads) {
  const auto stream = cpu_device().make_stream();
  const Case c{8, 2, 1.0f, BalanceCounts::first_choice, {700, 300, 129}, {650, 300, 5}};
  const Guarded logits = random_normal(DType::f32, {1129, 8}, 6);
  const int before = omp_get_max_threads();
  omp_set_num_threads(1);
  const Forward serial(*stream, c, logits);
  omp_set_num_threads(5);
  const Forward threaded(*stream, c, logits);
  omp_set_num_threads(before);
  EXPECT_TRUE(serial == threaded);
}

}  // namespace
}  // namespace orchard::testing
