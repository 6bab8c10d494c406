// Trains a task under a layout and holds the outcome against one rank's. The reference stores its
// routing, and layouts follow it: a near-tie of a router would make losses incomparable.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <string>

#include "tests/train/replica.h"

namespace orchard::testing {

struct LayoutTask {
  std::string name;
  ModelConfig model;
  ReplicaOptions options;
  double learning_rate = 3e-3;
  std::vector<std::vector<MicroBatch>> steps;  // micro-batches of each step, of all ranks
};

struct LayoutOutcome {
  std::vector<LossReport> losses;                          // of each step
  std::vector<double> gradient_norms;                      // likewise
  std::map<std::string, std::vector<float>> gradients;     // of step 1, whole
  std::vector<std::vector<std::vector<Routing>>> routing;  // [step][micro-batch][sparse layer]
  ChoiceComparison choices;                                // of this rank against the reference
  bool has_every_layer = true;                             // false: other stages have some
  std::string unequal_copies;                              // see Replica

  bool has_bits_of(const LayoutOutcome& other) const {
    const auto loss = [](const LossReport& report) { return report.loss; };
    return gradients == other.gradients && gradient_norms == other.gradient_norms &&
           std::ranges::equal(losses, other.losses, {}, loss, loss);
  }
};

// What a test does to a replica before it trains, to see whether the comparison notices.
using Sabotage = std::function<void(Replica&)>;

struct LayoutRun {
  const ParallelContext& ranks;
  const LayoutOutcome* reference = nullptr;  // null: this is the reference
  Sabotage sabotage = {};
  const ParallelContext* comparing = nullptr;  // gathers the gradients; null: `ranks` do
};

// Collective over the mesh.
inline LayoutOutcome run_layout(const LayoutTask& task, const LayoutRun& run) {
  const auto& [ranks, reference, sabotage, comparing] = run;
  Replica replica(task.model, task.options, ranks);
  if (sabotage) sabotage(replica);
  LayoutOutcome outcome{.has_every_layer = ranks.stages().ranks() == 1};
  const auto dp = static_cast<std::size_t>(ranks.mesh().data());
  for (std::size_t step = 0; step < task.steps.size(); ++step) {
    const std::vector<MicroBatch>& all = task.steps[step];
    StepTotals totals{.sizes = sizes_of(all)};
    for (const MicroBatch& batch : all) {
      totals.targets += batch.target_count;
      totals.sequences += batch.sequences;
      for (const std::int32_t rows : batch.real_rows) totals.real_rows += rows;
    }
    const std::size_t count = all.size() / dp;
    const std::size_t first = static_cast<std::size_t>(ranks.coordinates().data) * count;
    const std::span mine = std::span(all).subspan(first, count);
    std::vector<std::vector<Routing>> routing;
    for (const MicroBatch& batch : mine) routing.push_back(replica.route(batch));
    if (reference) {
      for (std::size_t m = 0; m < count; ++m) {
        const std::vector<Routing>& wanted = reference->routing[step][first + m];
        for (std::size_t layer = 0; layer < wanted.size(); ++layer) {
          if (!routing[m][layer].chosen.empty())
            outcome.choices.add(routing[m][layer], wanted[layer]);
        }
        routing[m] = wanted;
      }
    }
    const StepReport report = replica.step(mine, totals, routing, task.learning_rate,
                                           static_cast<std::int64_t>(step) + 1);
    outcome.losses.push_back(report.losses);
    outcome.gradient_norms.push_back(report.gradient_norm);
    outcome.routing.push_back(std::move(routing));
    if (step > 0) continue;
    for (const Parameter* p : replica.store().catalogue())
      outcome.gradients[p->spec.name] = replica.gradient(*p, comparing ? *comparing : ranks);
    outcome.unequal_copies = replica.unequal_copies();
  }
  return outcome;
}

// How far an outcome may be from the reference. Relative to: a loss itself; the norm of a
// parameter's gradient, or, where that is small, 1e-3 of what the parameter would have of the norm
// of all of them if it were spread evenly.
struct LayoutTolerance {
  double loss = 1e-5, gradient = 1e-5;
};

inline double distance(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i)
    sum += std::pow(static_cast<double>(a[i]) - static_cast<double>(b.at(i)), 2);
  return std::sqrt(sum);
}

inline double norm(const std::vector<float>& values) {
  return distance(values, std::vector<float>(values.size()));
}

// Root mean square of all elements.
inline double gradient_density(const LayoutOutcome& outcome) {
  double elements = 0, square = 0;
  for (const auto& [name, gradient] : outcome.gradients) {
    elements += static_cast<double>(gradient.size());
    square += std::pow(norm(gradient), 2);
  }
  return std::sqrt(square / elements);
}

// Of attention without QK-norm: the bias shifts all scores of a query alike, so that its gradient is zero.
// Rounding leaves a few units in the last place of the terms, which the weight's gradient has, too.
inline std::string nonzero_key_biases(const LayoutOutcome& outcome) {
  std::string text;
  for (const auto& [name, gradient] : outcome.gradients) {
    if (!name.ends_with(".bk")) continue;
    const std::string weight = name.substr(0, name.size() - 2) + "wk";
    const double own = norm(gradient), terms = norm(outcome.gradients.at(weight));
    if (own <= 1e-6 * terms) continue;
    text += fmt::format("gradient of {} is not zero but has norm {}, that of the weight {}\n", name,
                        own, terms);
  }
  return text;
}

// What is wrong with an outcome, line by line; empty where nothing is.
inline std::string differences(const LayoutOutcome& outcome, const LayoutOutcome& reference,
                               const LayoutTolerance& tolerance) {
  std::string text;
  const auto compare = [&](const std::string& what, double value, double wanted, double bound) {
    if (std::abs(value - wanted) <= bound * std::abs(wanted)) return;  // false for NaN, too
    text += fmt::format("{} is {}, alone {}\n", what, value, wanted);
  };
  for (std::size_t step = 0; step < reference.losses.size(); ++step) {
    const std::string at = fmt::format(" of step {}", step + 1);
    const LossReport &own = outcome.losses.at(step), &wanted = reference.losses[step];
    compare("loss" + at, own.loss, wanted.loss, tolerance.loss);
    compare("balance loss" + at, own.balance_loss, wanted.balance_loss, tolerance.loss);
    compare("z-loss" + at, own.z_loss, wanted.z_loss, tolerance.loss);
    if (own.expert_load != wanted.expert_load) text += "expert load" + at + " differs\n";
    if (own.expert_dropped != wanted.expert_dropped || own.dropped != wanted.dropped)
      text += "dropped choices" + at + " differ\n";
  }
  compare("gradient norm", outcome.gradient_norms.at(0), reference.gradient_norms[0],
          tolerance.gradient);
  const double density = gradient_density(reference);
  for (const auto& [name, wanted] : reference.gradients) {
    const double off = distance(outcome.gradients.at(name), wanted);
    const double share = density * std::sqrt(static_cast<double>(wanted.size()));
    const double bound = tolerance.gradient * std::max(norm(wanted), 1e-3 * share);
    if (off <= bound) continue;
    text += fmt::format("gradient of {} is off by {} of norm {}, allowed {}\n", name, off,
                        norm(wanted), bound);
  }
  text += nonzero_key_biases(outcome);
  if (!outcome.unequal_copies.empty())
    text += fmt::format("stages differ in the gradient of {}\n", outcome.unequal_copies);
  const auto& [rows, clear, flipped] = outcome.choices;
  if (flipped > 0) text += fmt::format("{} of {} clear choices are others\n", flipped, clear);
  const bool is_sparse = !reference.losses.at(0).expert_load.empty();
  if (2 * clear < rows || (is_sparse && outcome.has_every_layer && rows == 0))
    text += fmt::format("only {} of {} choices are clear\n", clear, rows);
  return text;
}

// bf16 rounds activations to 8 bits under every layout, but not at the same places: what one rank,
// `alone`, is away from fp32, `exact`, is what a layout may be, too; twice that, and more where a
// parameter has few elements: the ratio of two such distances of n elements varies as the square
// root of an F(n, n) variable, which for n = 3 is above 2 + 8/3 once in 60. A part of a gradient that
// went missing would be ten times as much.
inline std::string rounding_differences(const LayoutOutcome& outcome, const LayoutOutcome& alone,
                                        const LayoutOutcome& exact) {
  std::string text;
  for (std::size_t step = 0; step < alone.losses.size(); ++step) {
    const double own = outcome.losses.at(step).loss, wanted = alone.losses[step].loss;
    // A quarter of one rounding of a logit. Once there were updates a whole one: an element whose
    // gradient is smaller than its rounding moves by the learning rate in either direction.
    if (std::abs(own - wanted) <= wanted * (step == 0 ? 0x1p-10 : 0x1p-8)) continue;
    text += fmt::format("loss of step {} is {}, alone {}\n", step + 1, own, wanted);
  }
  const double floor = 1e-3 * 0x1p-8 * gradient_density(exact);
  for (const auto& [name, gradient] : exact.gradients) {
    const double own = distance(outcome.gradients.at(name), gradient);
    const auto n = static_cast<double>(gradient.size());
    const double allowed =
        (2 + 8 / n) * distance(alone.gradients.at(name), gradient) + floor * std::sqrt(n);
    if (own <= allowed) continue;
    text += fmt::format("gradient of {} is off by {}, allowed {}\n", name, own, allowed);
  }
  return text;
}

}  // namespace orchard::testing
