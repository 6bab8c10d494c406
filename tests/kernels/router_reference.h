// The router: the reference in double, the plain evaluation in float (same_precision.h).
#pragma once

#include <algorithm>

#include "tests/kernels/router_test.h"

namespace orchard::testing {

// The formulas of router.h, one token and one choice at a time. Choices are those of the largest p, or
// `fixed` ones.
template <class Real>
struct RouterReference {
  RouterReference(const RouterCase& c, const std::vector<Real>& logits,
                  const std::vector<double>* fixed = {})
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

  void softmax(const RouterCase& c, const std::vector<Real>& logits, std::int64_t t) {
    const Real* const row = &logits[at(t * c.experts)];
    const Real maximum = *std::max_element(row, row + c.experts);
    Real sum = 0;
    for (std::int64_t e = 0; e < c.experts; ++e) sum += std::exp(row[e] - maximum);
    log_sum_exp[at(t)] = maximum + std::log(sum);
    for (std::int64_t e = 0; e < c.experts; ++e) {
      p[at(t * c.experts + e)] = std::exp(row[e] - maximum) / sum;
    }
  }

  void choose(const RouterCase& c, std::int64_t t, const std::vector<double>* fixed) {
    const Real* const row = &p[at(t * c.experts)];
    std::vector<bool> taken(at(c.experts));
    const auto best_left = [&] {
      std::int64_t best = -1;
      for (std::int64_t e = 0; e < c.experts; ++e) {
        if (!taken[at(e)] && (best < 0 || row[e] > row[best])) best = e;
      }
      return best;
    };
    auto sum = static_cast<Real>(1e-9f);
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

  void drop(const RouterCase& c, std::int64_t begin, std::int64_t real) {
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

  void balance(const RouterCase& c, std::int64_t s, std::int64_t begin, std::int64_t real) {
    const int counted = c.counts == BalanceCounts::all_choices ? c.k : 1;
    Real mean = 0;
    for (std::int64_t e = 0; e < c.experts && real > 0; ++e) {
      Real choices = 0, mass = 0;
      for (std::int64_t t = begin; t < begin + real; ++t) {
        for (int j = 0; j < counted; ++j) {
          choices += chosen[at(t * c.k + j)] == static_cast<double>(e);
        }
        mass += p[at(t * c.experts + e)];
      }
      const Real fraction = choices / static_cast<Real>(real);
      fractions[at(s * c.experts + e)] = fraction;
      mean += fraction * (mass / static_cast<Real>(real)) / static_cast<Real>(c.experts);
    }
    balance_loss[at(s)] =
        static_cast<Real>(c.experts * c.experts) * mean / static_cast<Real>(counted);
  }

  std::vector<Real> p, log_sum_exp;
  std::vector<double> chosen, kept;
  std::vector<Real> gates, margins, fractions, balance_loss, z_loss;
  std::vector<double> counts;
};

// The gradient of what forward left, as router.h has the losses: with S the sum that the gates g were
// divided by and G_j the d_gates of kept choices
//   d_p[e] = balance_scale · E·f_e / (k'·real tokens) + [e = e_i chosen] · (G_i - Σ_j G_j·g_j) / S
//   d_logits = p · (d_p - Σ_e p·d_p + 2·z_scale·log_sum_exp)
template <class Real>
class RouterGradient {
 public:
  RouterGradient(const RouterCase& c, const RouterRun& forward, const Guarded& d_gates,
                 const RouterLossScales& scales)
      : c_(c), forward_(forward), d_gates_(d_gates), scales_(scales) {
    const std::vector<int> offsets = c.offsets();
    for (std::size_t s = 0; s < c.lengths.size(); ++s) {
      for (std::int64_t t = offsets[s]; t < offsets[s + 1]; ++t) {
        if (t < offsets[s] + c.real[s]) {
          add_token(static_cast<std::int64_t>(s), t);
        } else {
          d_logits.insert(d_logits.end(), static_cast<std::size_t>(c.experts), 0);
          terms.insert(terms.end(), static_cast<std::size_t>(c.experts), 0);
        }
      }
    }
  }

  std::vector<Real> d_logits;
  // The size of what d_logits is the sum of: where one expert has nearly all of p, a token's gradients
  // cancel, and their rounding errors do not. Where all its choices were dropped, the balance and z are
  // all there is.
  std::vector<double> terms;

 private:
  static Real at(const Guarded& tensor, std::int64_t i) { return static_cast<Real>(tensor.at(i)); }

  void add_token(std::int64_t s, std::int64_t t) {
    const std::int64_t first_choice = t * c_.k;
    const auto p = [&](std::int64_t e) { return at(forward_.probabilities, t * c_.experts + e); };
    const auto expert = [&](int j) {
      return static_cast<std::int64_t>(forward_.chosen.at(first_choice + j));
    };
    const auto gradient = [&](int j) {
      return forward_.experts.at(first_choice + j) < 0 ? 0 : at(d_gates_, first_choice + j);
    };
    auto sum = static_cast<Real>(1e-9f);
    for (int j = 0; j < c_.k; ++j) sum += p(expert(j));
    Real dot = 0;
    double dot_terms = 0;
    for (int j = 0; j < c_.k; ++j) {
      dot += gradient(j) * (p(expert(j)) / sum);
      dot_terms += std::abs(gradient(j) * (p(expert(j)) / sum));
    }

    const int counted = c_.counts == BalanceCounts::all_choices ? c_.k : 1;
    const int real = c_.real[static_cast<std::size_t>(s)];
    std::vector<Real> d_p;
    for (std::int64_t e = 0; e < c_.experts; ++e) {
      const Real fraction = at(forward_.fractions, s * c_.experts + e);
      d_p.push_back(static_cast<Real>(scales_.balance) * static_cast<Real>(c_.experts) * fraction /
                    static_cast<Real>(counted * real));
    }
    for (int j = 0; j < c_.k; ++j)
      d_p[static_cast<std::size_t>(expert(j))] += (gradient(j) - dot) / sum;
    Real expectation = 0;
    double magnitude = 0;
    for (std::int64_t e = 0; e < c_.experts; ++e) {
      expectation += p(e) * d_p[static_cast<std::size_t>(e)];
      magnitude += p(e) * std::abs(d_p[static_cast<std::size_t>(e)]);
    }
    const Real z = 2 * static_cast<Real>(scales_.z) * at(forward_.log_sum_exp, t);
    for (std::int64_t e = 0; e < c_.experts; ++e)
      d_logits.push_back(p(e) * (d_p[static_cast<std::size_t>(e)] - expectation + z));
    for (std::int64_t e = 0; e < c_.experts; ++e)
      terms.push_back(p(e) * (std::abs(d_p[static_cast<std::size_t>(e)]) + magnitude +
                              2 * dot_terms + std::abs(z)));
    for (int j = 0; j < c_.k; ++j)
      terms[static_cast<std::size_t>(t * c_.experts + expert(j))] += p(expert(j)) / sum * dot_terms;
  }

  const RouterCase& c_;
  const RouterRun& forward_;
  const Guarded& d_gates_;
  const RouterLossScales& scales_;
};

}  // namespace orchard::testing
