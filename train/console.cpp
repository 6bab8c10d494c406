#include "train/console.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <numeric>

#include "train/expert_load.h"

namespace orchard {
namespace {

// More sparse layers than this are shown by the span of their loads.
constexpr std::size_t layers_shown = 4;

// Pictures make steps uneven, and a machine's load changes: an average over about twenty steps.
constexpr double smoothing = 0.05;

std::string expert_part(const LossReport& losses) {
  std::vector<double> loads;
  for (const std::vector<double>& shares : losses.expert_load)
    loads.push_back(load_imbalance(shares));
  if (loads.empty()) return {};
  std::string text = " load";
  if (loads.size() <= layers_shown) {
    for (const double load : loads) fmt::format_to(std::back_inserter(text), " {:.2f}", load);
  } else {
    const auto [least, most] = std::minmax_element(loads.begin(), loads.end());
    fmt::format_to(std::back_inserter(text), " {:.2f}..{:.2f} in {} layers", *least, *most,
                   loads.size());
  }
  std::int64_t dead = 0;
  for (const std::vector<double>& shares : losses.expert_load) dead += dead_experts(shares);
  if (dead > 0) fmt::format_to(std::back_inserter(text), " dead {}", dead);
  const double dropped = std::accumulate(losses.dropped.begin(), losses.dropped.end(), 0.0) /
                         static_cast<double>(std::max<std::size_t>(losses.dropped.size(), 1));
  if (dropped > 0) fmt::format_to(std::back_inserter(text), " dropped {:.1f}%", 100 * dropped);
  return text;
}

}  // namespace

std::string step_line(const StepEvent& event, double eta_seconds) {
  const LossReport& losses = event.report.losses;
  const bool sparse = !losses.expert_load.empty();
  const double seconds = std::max(event.step_seconds, 1e-9);
  std::string line;
  const auto out = std::back_inserter(line);
  fmt::format_to(out, "stage {} step {:>{}}/{} loss {:.4f}", event.stage, event.step,
                 fmt::formatted_size("{}", event.steps), event.steps, losses.loss);
  if (sparse) fmt::format_to(out, " balance {:.3f} z {:.3g}", losses.balance_loss, losses.z_loss);
  fmt::format_to(out, " norm {:.3g} lr {:.2e} {} tok/s {:.3g} s ({:.0f}% data) eta {}",
                 event.report.gradient_norm, event.learning_rate,
                 format_count(static_cast<double>(event.tokens) / seconds), event.step_seconds,
                 100 * event.data_seconds / seconds, format_duration(eta_seconds));
  line += expert_part(losses);
  if (event.bad_samples > 0) fmt::format_to(out, " bad samples {}", event.bad_samples);
  return line;
}

std::string validation_table(const ValidationEvent& event) {
  const ValidationReport& report = event.report;
  std::string text = fmt::format("stage {} step {}/{} held-out loss {:.4f} of {} targets ({})",
                                 event.stage, event.step, event.steps, report.loss, report.targets,
                                 format_duration(event.seconds));
  const auto out = std::back_inserter(text);
  std::size_t width = 0;
  for (const CategoryLoss& c : report.categories) width = std::max(width, c.category.size());
  for (const CategoryLoss& c : report.categories) {
    fmt::format_to(out, "\n  {:<{}}  {:8.4f}  {:>8} targets", c.category, width, c.loss, c.targets);
    if (c.swap.samples > 1)
      fmt::format_to(out, "  swapped {:+.4f}, z = {:.1f}", c.swap.difference, c.swap.z());
  }
  const SwapReport& swap = report.swap;
  if (swap.samples > 0) {
    fmt::format_to(out,
                   "\n  right pictures {:.4f}, swapped {:.4f}: {:+.4f} +- {:.4f}, z = {:.1f} over "
                   "{} samples",
                   swap.own, swap.swapped, swap.difference, swap.standard_error, swap.z(),
                   swap.samples);
  }
  return text;
}

void Console::on_step(const StepEvent& event) {
  const bool first = event.stage != stage_;
  if (first) heard_ = 0;
  stage_ = event.stage;
  // The first step pays for warming up, so it counts only until there is a second.
  const double weight =
      std::max(smoothing, 1.0 / static_cast<double>(std::max<std::int64_t>(heard_, 1)));
  ++heard_;
  seconds_per_step_ += weight * (event.step_seconds - seconds_per_step_);
  const std::string line =
      step_line(event, seconds_per_step_ * static_cast<double>(event.steps - event.step));
  const bool stays = !terminal_.is_live() || first || event.step == event.steps ||
                     event.step % permanent_every_ == 0;
  if (stays) {
    terminal_.print(line);
  } else {
    terminal_.update(line);
  }
}

void Console::on_progress(const ProgressEvent& event) {
  if (event.doing != doing_) progress_ = patient_progress(terminal_, event.doing, event.units);
  doing_ = event.doing;
  progress_(event.done, event.total);
}

void Console::on_validation(const ValidationEvent& event) {
  terminal_.print(validation_table(event));
}

}  // namespace orchard
