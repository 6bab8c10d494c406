#include "launch/pipeline_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>

#include "launch/configuration_error.h"
#include "launch/suggest.h"
#include "parallel/pipeline_balance.h"

namespace orchard {
namespace {

constexpr int most_blocks = 10000;  // of a kind: far more than a model has

// Nothing where the text is not one number.
template <class Number>
std::optional<Number> parse_number(std::string_view text) {
  Number number{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) return {};
  return number;
}

}  // namespace

double Plan::peak_saved() const {
  double most = 0;
  for (const RankTimeline& rank : timeline.ranks) most = std::max(most, rank.peak_saved);
  return most;
}

ScheduleKind parse_schedule(const std::string& text) {
  std::vector<std::string> names;
  for (const ScheduleKind kind : schedule_kinds) {
    if (text == name_of(kind)) return kind;
    names.emplace_back(name_of(kind));
  }
  throw ConfigurationError(fmt::format("--schedule {}: must be one of {}{}", text,
                                       fmt::join(names, ", "), suggestion(text, names)));
}

std::vector<double> parse_blocks(const std::string& list) {
  std::vector<double> blocks;
  for (std::string_view rest = list; !rest.empty();) {
    const std::string_view item = rest.substr(0, rest.find(','));
    rest.remove_prefix(std::min(rest.size(), item.size() + 1));
    const std::size_t times = item.find('x');
    const auto count = times == item.npos ? 1 : parse_number<int>(item.substr(0, times));
    const auto cost = parse_number<double>(times == item.npos ? item : item.substr(times + 1));
    require_configuration(
        count && *count > 0 && *count <= most_blocks && cost && std::isfinite(*cost) && *cost > 0,
        "--blocks {}: \"{}\" must be COST or COUNTxCOST, both positive", list, item);
    blocks.insert(blocks.end(), static_cast<std::size_t>(*count), *cost);
  }
  return blocks;
}

Plan make_plan(ScheduleKind kind, const PlanRequest& request) {
  Plan plan{.kind = kind};
  plan.schedule =
      make_schedule({.kind = kind,
                     .ranks = request.stages,
                     .chunks = request.chunks > 0 ? request.chunks : default_chunks(kind),
                     .micro_batches = request.micro_batches});
  PipelineCosts costs = PipelineCosts::even(plan.schedule, request.cost);
  if (!request.links.empty()) {
    plan.cuts = balanced_cuts(totals_of(request.links), plan.schedule.stages());
    costs = pipeline_costs({kind, plan.schedule.ranks, plan.schedule.chunks, plan.cuts},
                           plan.schedule, request.links, request.halves);
  } else if (!request.blocks.empty()) {
    plan.cuts = balanced_cuts(request.blocks, plan.schedule.stages());
    costs.stages.clear();
    for (const double cost : stage_costs(request.blocks, plan.cuts))
      costs.stages.push_back(request.cost * cost);
  }
  costs.message = request.message;
  plan.timeline = simulate(plan.schedule, costs);
  return plan;
}

std::vector<Plan> all_plans(const PlanRequest& request) {
  std::vector<Plan> plans;
  for (const ScheduleKind kind : schedule_kinds) {
    PlanRequest own = request;
    if (kind != ScheduleKind::interleaved) own.chunks = 0;
    plans.push_back(make_plan(kind, own));
  }
  return plans;
}

}  // namespace orchard
