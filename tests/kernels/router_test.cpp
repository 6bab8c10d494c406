// The router against an fp64 reference: choices, capacity, statistics, losses and gradient.
#include "kernels/router/router.h"

#include <omp.h>

#include <numeric>
#include <variant>

#include "tests/kernels/thread_orders.h"

namespace orchard::testing {
namespace {

// Logits are below 8 in size: x - max is off by 8 roundoffs at most, and exp, division and the sum
// over at most 130 experts add fewer than 24 more.
const double bound = 32 * unit_roundoff(DType::f32);

struct Case {
  std::int64_t experts;
  int k;
  float capacity_factor;
  BalanceCounts counts;
  std::vector<int> lengths, real;  // per sequence

  std::int64_t tokens() const { return std::accumulate(lengths.begin(), lengths.end(), 0); }
  std::int64_t sequences() const { return static_cast<std::int64_t>(lengths.size()); }
  std::vector<int> offsets() const {
    std::vector<int> out = {0};
    for (const int length : lengths) out.push_back(out.back() + length);
    return out;
  }
};

// One forward run with all its tensors.
struct Forward {
  Forward(Stream& stream, const Case& c, const Guarded& input, const Guarded* replay = nullptr)
      : logits(input),
        offsets(integers({c.sequences() + 1}, c.offsets())),
        real(integers({c.sequences()}, c.real)),
        probabilities(DType::f32, {c.tokens(), c.experts}),
        log_sum_exp(DType::f32, {c.tokens()}),
        chosen(DType::i32, {c.tokens(), c.k}),
        experts(DType::i32, {c.tokens(), c.k}),
        gates(DType::f32, {c.tokens(), c.k}),
        margins(DType::f32, {c.tokens()}),
        fractions(DType::f32, {c.sequences(), c.experts}),
        balance_loss(DType::f32, {c.sequences()}),
        z_loss(DType::f32, {c.sequences()}),
        counts(DType::i32, {2, c.experts}) {
    Guarded replayed = replay ? *replay : zeros(DType::i32, {1});
    OnDevice logits_d(stream, logits), offsets_d(stream, offsets), real_d(stream, real);
    OnDevice replayed_d(stream, replayed), probabilities_d(stream, probabilities);
    OnDevice log_sum_exp_d(stream, log_sum_exp), chosen_d(stream, chosen);
    OnDevice experts_d(stream, experts), gates_d(stream, gates), margins_d(stream, margins);
    OnDevice fractions_d(stream, fractions), balance_loss_d(stream, balance_loss);
    OnDevice z_loss_d(stream, z_loss), counts_d(stream, counts);
    run(stream, RouterForward{.logits = logits_d,
                              .sequence_offsets = offsets_d,
                              .real_tokens = real_d,
                              .replay = replay ? replayed_d.tensor() : Tensor(),
                              .k = c.k,
                              .capacity_factor = c.capacity_factor,
                              .balance_counts = c.counts,
                              .probabilities = probabilities_d,
                              .log_sum_exp = log_sum_exp_d,
                              .chosen = chosen_d,
                              .experts = experts_d,
                              .gates = gates_d,
                              .margins = margins_d,
                              .choice_fractions = fractions_d,
                              .balance_loss = balance_loss_d,
                              .z_loss = z_loss_d,
                              .expert_counts = counts_d});
    for (OnDevice* const output :
         {&probabilities_d, &log_sum_exp_d, &chosen_d, &experts_d, &gates_d, &margins_d,
          &fractions_d, &balance_loss_d, &z_loss_d, &counts_d}) {
      output->download();
    }
    stream.synchronize();
  }

  bool operator==(const Forward&) const = default;

  Guarded logits, offsets, real;
  Guarded probabilities, log_sum_exp, chosen, experts, gates, margins, fractions, balance_loss,
      z_loss, counts;
};

// The formulas of router.h in fp64, one token and one choice at a time.
struct Reference {
  Reference(const Case& c, const std::vector<double>& logits, const std::vector<double>* fixed = {})
      : p(logits.size()),
        log_sum_exp(at(c.tokens())),
        chosen(at(c.tokens() * c.k), -1),
        kept(at(c.tokens() * c.k), -1),
        gates(at(c.tokens() * c.k)),
        margins(at(c.tokens())),
        fractions(at(c.sequences() * c.experts)),
        balance_loss(at(c.sequences())),
        z_loss(at(c.sequences())),
        counts(at(2 * c.experts)) {
    std::int64_t begin = 0;
    for (std::int64_t s = 0; s < c.sequences(); ++s) {
      const std::int64_t real = c.real[at(s)];
      for (std::int64_t t = begin; t < begin + real; ++t) {
        softmax(c, logits, t);
        choose(c, t, fixed);
        z_loss[at(s)] += log_sum_exp[at(t)] * log_sum_exp[at(t)];
      }
      drop(c, begin, real);
      balance(c, s, begin, real);
      begin += c.lengths[at(s)];
    }
  }

  static std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

  void softmax(const Case& c, const std::vector<double>& logits, std::int64_t t) {
    double sum = 0;
    for (std::int64_t e = 0; e < c.experts; ++e) sum += std::exp(logits[at(t * c.experts + e)]);
    log_sum_exp[at(t)] = std::log(sum);
    for (std::int64_t e = 0; e < c.experts; ++e) {
      p[at(t * c.experts + e)] = std::exp(logits[at(t * c.experts + e)]) / sum;
    }
  }

  void choose(const Case& c, std::int64_t t, const std::vector<double>* fixed) {
    const double* const row = &p[at(t * c.experts)];
    std::vector<bool> taken(at(c.experts));
    const auto best_left = [&] {
      std::int64_t best = -1;
      for (std::int64_t e = 0; e < c.experts; ++e) {
        if (!taken[at(e)] && (best < 0 || row[e] > row[best])) best = e;
      }
      return best;
    };
    double sum = 1e-9;
    for (int j = 0; j < c.k; ++j) {
      const std::int64_t e =
          fixed ? static_cast<std::int64_t>((*fixed)[at(t * c.k + j)]) : best_left();
      taken[at(e)] = true;
      chosen[at(t * c.k + j)] = static_cast<double>(e);
      sum += row[e];
    }
    for (int j = 0; j < c.k; ++j) {
      gates[at(t * c.k + j)] = row[static_cast<int>(chosen[at(t * c.k + j)])] / sum;
    }
    if (best_left() >= 0) {
      margins[at(t)] = row[static_cast<int>(chosen[at(t * c.k + c.k - 1)])] - row[best_left()];
    }
  }

  void drop(const Case& c, std::int64_t begin, std::int64_t real) {
    const std::int64_t capacity =
        c.capacity_factor > 0
            ? std::max(1, static_cast<int>(static_cast<double>(real) * c.capacity_factor /
                                           static_cast<double>(c.experts)))
            : real;
    for (int j = 0; j < c.k; ++j) {
      for (std::int64_t t = begin; t < begin + real; ++t) {
        const double e = chosen[at(t * c.k + j)];
        std::int64_t position = 0;
        for (std::int64_t u = begin; u < t; ++u) position += chosen[at(u * c.k + j)] == e;
        for (std::int64_t u = begin; u < begin + real; ++u) {
          for (int i = 0; i < j; ++i) position += kept[at(u * c.k + i)] == e;
        }
        if (position < capacity) {
          kept[at(t * c.k + j)] = e;
        } else {
          gates[at(t * c.k + j)] = 0;
        }
        counts[at(static_cast<std::int64_t>(e))] += 1;
        counts[at(c.experts + static_cast<std::int64_t>(e))] += position < capacity;
      }
    }
  }

  void balance(const Case& c, std::int64_t s, std::int64_t begin, std::int64_t real) {
    const int counted = c.counts == BalanceCounts::all_choices ? c.k : 1;
    double mean = 0;
    for (std::int64_t e = 0; e < c.experts && real > 0; ++e) {
      double choices = 0, mass = 0;
      for (std::int64_t t = begin; t < begin + real; ++t) {
        for (int j = 0; j < counted; ++j) {
          choices += chosen[at(t * c.k + j)] == static_cast<double>(e);
        }
        mass += p[at(t * c.experts + e)];
      }
      fractions[at(s * c.experts + e)] = choices / static_cast<double>(real);
      mean += choices * mass / static_cast<double>(real * real * c.experts);
    }
    balance_loss[at(s)] = static_cast<double>(c.experts * c.experts) * mean / counted;
  }

  std::vector<double> p, log_sum_exp, chosen, kept, gates, margins, fractions, balance_loss, z_loss,
      counts;
};

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
  Guarded d_logits(DType::f32, {c.tokens(), c.experts});
  const float balance_scale = 0.7f, z_scale = 0.03f;
  OnDevice probabilities_d(stream(), forward.probabilities), chosen_d(stream(), forward.chosen);
  OnDevice log_sum_exp_d(stream(), forward.log_sum_exp), experts_d(stream(), forward.experts);
  OnDevice fractions_d(stream(), forward.fractions), offsets_d(stream(), forward.offsets);
  OnDevice real_d(stream(), forward.real), d_gates_d(stream(), d_gates);
  OnDevice d_logits_d(stream(), d_logits);
  const RouterBackward op{.probabilities = probabilities_d,
                          .log_sum_exp = log_sum_exp_d,
                          .chosen = chosen_d,
                          .experts = experts_d,
                          .choice_fractions = fractions_d,
                          .sequence_offsets = offsets_d,
                          .real_tokens = real_d,
                          .d_gates = d_gates_d,
                          .k = c.k,
                          .balance_counts = c.counts,
                          .balance_scale = balance_scale,
                          .z_scale = z_scale,
                          .d_logits = d_logits_d};
  run_and_download(stream(), op, {&d_logits_d});

  // The choices, and with them f_e and the drops, are held fixed, as the gradient holds them.
  const std::vector<double> chosen = forward.chosen.values();
  const auto total = [&](const std::vector<double>& at) {
    const Reference r(c, at, &chosen);
    double sum = 0;
    for (std::size_t i = 0; i < r.gates.size(); ++i) {
      sum += d_gates.at(static_cast<std::int64_t>(i)) * r.gates[i];
    }
    for (const double loss : r.balance_loss) sum += balance_scale * loss;
    for (const double loss : r.z_loss) sum += z_scale * loss;
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

  const Guarded first = d_logits;
  run_and_download(stream(), op, {&d_logits_d});
  EXPECT_TRUE(first == d_logits) << "two runs differ";
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, Router,
    ::testing::Combine(
        every_device(),
        ::testing::Values(
            Case{1, 1, 0, BalanceCounts::first_choice, {1}, {1}},
            Case{2, 2, 1.0f, BalanceCounts::first_choice, {9, 3}, {9, 3}},
            Case{8, 2, 0, BalanceCounts::first_choice, {33}, {33}},
            Case{8, 2, 1.0f, BalanceCounts::first_choice, {20, 1, 5, 0, 13}, {17, 1, 0, 0, 13}},
            Case{8, 1, 0.5f, BalanceCounts::all_choices, {29}, {29}},
            Case{17, 3, 1.25f, BalanceCounts::all_choices, {23, 6}, {19, 6}},
            Case{64, 8, 2.0f, BalanceCounts::all_choices, {12}, {11}},
            Case{130, 5, 0, BalanceCounts::first_choice, {7}, {7}},
            Case{8, 2, 2.0f, BalanceCounts::first_choice, {0}, {0}})),
    device_test_name<Case>);

// Several slices a sequence, and as many experts and choices as the GPU kernels take.
INSTANTIATE_TEST_SUITE_P(
    Shapes, LongRouter,
    ::testing::Combine(
        every_device(),
        ::testing::Values(
            Case{40, 2, 1.0f, BalanceCounts::first_choice, {150, 64, 65}, {131, 64, 1}},
            Case{256, 8, 0.75f, BalanceCounts::all_choices, {70}, {66}},
            Case{33, 3, 0, BalanceCounts::all_choices, {0, 129, 0}, {0, 128, 0}})),
    device_test_name<Case>);

// --- exact cases ---

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
    try {
      Forward(*stream, c, zeros(DType::f32, {2, 4}), &replay);
      FAIL() << "an illegal replay was accepted";
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("replay of token 1"), std::string::npos)
          << error.what();
    }
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
