// The router against an fp64 reference: choices, capacity, statistics, losses and gradient.
#include "tests/kernels/router_test.h"

namespace orchard::testing {
namespace {

using Case = RouterCase;
using Forward = RouterRun;
const double bound = router_bound;

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
  Guarded balance = number(balance_scale), z = number(z_scale);
  OnDevice balance_d(stream(), balance), z_d(stream(), z);
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
                          .balance_scale = balance_d,
                          .z_scale = z_d,
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
