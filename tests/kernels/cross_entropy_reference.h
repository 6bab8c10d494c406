// Softmax cross-entropy, row by row: the reference in double, the plain evaluation in float
// (same_precision.h).
#pragma once

#include <type_traits>

#include "tests/kernels/checks.h"

namespace orchard::testing {

using Values = std::vector<double>;

template <class Real>
std::vector<Real> reference_losses(const std::vector<Real>& logits, std::size_t vocab,
                                   const std::vector<int>& targets) {
  std::vector<Real> losses;
  for (std::size_t row = 0; row < targets.size(); ++row) {
    const Real* const x = logits.data() + row * vocab;
    const Real maximum = *std::max_element(x, x + vocab);
    Real sum = 0;
    for (std::size_t j = 0; j < vocab; ++j) sum += std::exp(x[j] - maximum);
    const int target = targets[row];
    losses.push_back(target < 0 ? 0 : maximum + std::log(sum) - x[target]);
  }
  return losses;
}

template <class Real>
std::vector<Real> reference_gradients(const std::vector<Real>& logits, std::size_t vocab,
                                      const std::vector<int>& targets,
                                      std::type_identity_t<Real> scale) {
  std::vector<Real> d(logits.size());
  for (std::size_t row = 0; row < targets.size(); ++row) {
    if (targets[row] < 0) continue;
    const Real* const x = logits.data() + row * vocab;
    const Real maximum = *std::max_element(x, x + vocab);
    Real sum = 0;
    for (std::size_t j = 0; j < vocab; ++j) sum += std::exp(x[j] - maximum);
    for (std::size_t j = 0; j < vocab; ++j) {
      const Real is_target = static_cast<int>(j) == targets[row];
      d[row * vocab + j] = scale * (std::exp(x[j] - maximum) / sum - is_target);
    }
  }
  return d;
}

// Both where each of `shards` ranks has as many of the columns: the softmax of each, then all of them
// together. Every row has a target.
template <class Real>
struct ShardedLossReference {
  std::vector<Real> losses, d_logits;  // [rows], [rows, vocab]

  ShardedLossReference(const std::vector<Real>& logits, std::size_t vocab, std::size_t shards,
                       const std::vector<int>& targets, std::type_identity_t<Real> scale)
      : d_logits(logits.size()) {
    const std::size_t columns = vocab / shards;
    for (std::size_t row = 0; row < targets.size(); ++row) {
      const Real* const x = logits.data() + row * vocab;
      std::vector<Real> maxima, sums(shards), exponentials;
      for (std::size_t j = 0; j < vocab; ++j) {
        const std::size_t s = j / columns;
        if (j % columns == 0) maxima.push_back(*std::max_element(x + j, x + j + columns));
        exponentials.push_back(std::exp(x[j] - maxima[s]));
        sums[s] += exponentials[j];
      }
      const Real maximum = *std::max_element(maxima.begin(), maxima.end());
      Real sum = 0;
      for (std::size_t s = 0; s < shards; ++s) sum += sums[s] * std::exp(maxima[s] - maximum);
      losses.push_back(maximum + std::log(sum) - x[targets[row]]);
      for (std::size_t j = 0; j < vocab; ++j) {
        const Real is_target = static_cast<int>(j) == targets[row];
        const Real p = exponentials[j] * std::exp(maxima[j / columns] - maximum) / sum;
        d_logits[row * vocab + j] = scale * (p - is_target);
      }
    }
  }
};

// Spread over the vocabulary, its ends included; every fifth row has none.
inline std::vector<int> make_targets(std::int64_t rows, std::int64_t vocab) {
  std::vector<int> targets;
  for (std::int64_t row = 0; row < rows; ++row) {
    targets.push_back(row % 5 == 4 ? -1 : static_cast<int>((row * 7919 + vocab - 1) % vocab));
  }
  return targets;
}

// Each gradient carries the relative error of its exponential and of the sum, `fp32`, then one
// rounding to its dtype; at the target p - 1 cancels, in terms of size `scale`. Column j of `d` is
// token first_id + j.
inline void expect_gradients_close(const Guarded& d, const Values& expected, std::size_t vocab,
                                   const std::vector<int>& targets, double scale, double fp32,
                                   std::int64_t first_id = 0) {
  const std::int64_t columns = d.shape()[1];
  for (std::int64_t i = 0; i < d.size(); ++i) {
    const auto row = static_cast<std::size_t>(i / columns);
    const std::int64_t token = first_id + i % columns;
    const double wanted = expected[row * vocab + static_cast<std::size_t>(token)];
    const double terms = token == targets[row] ? scale : std::abs(wanted);
    ASSERT_TRUE(std::abs(d.at(i) - wanted) <=
                unit_roundoff(d.dtype()) * std::abs(wanted) + fp32 * terms + 1e-37)
        << i << ": " << d.at(i) << ", expected " << wanted;
  }
}

}  // namespace orchard::testing
