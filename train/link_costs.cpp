#include "train/link_costs.h"

#include <algorithm>

#include "kernels/core/error.h"

namespace orchard {

std::vector<LinkCost> counted_costs(const ModelConfig& model, const Workload& work) {
  std::vector<LinkCost> costs;
  for (const FlopCounts& link : count_link_flops(model, work))
    costs.push_back({.forward = link.forward, .backward = link.training - link.forward});
  return costs;
}

std::vector<LinkCost> measured_costs(const ModelConfig& model, const Workload& work,
                                     const CostByKind& seconds) {
  const std::vector<LinkKind> kinds = link_kinds(model);
  std::vector<LinkCost> costs = counted_costs(model, work);
  double measured = 0, counted = 0;
  for (std::size_t i = 0; i < kinds.size(); ++i) {
    const auto known = seconds.find(kinds[i]);
    if (known == seconds.end()) continue;
    measured += known->second.total();
    counted += costs[i].total();
  }
  const double seconds_per_flop = counted > 0 ? measured / counted : 0;
  for (std::size_t i = 0; i < kinds.size(); ++i) {
    const auto known = seconds.find(kinds[i]);
    costs[i] = known != seconds.end() ? known->second
                                      : LinkCost{.forward = costs[i].forward * seconds_per_flop,
                                                 .backward = costs[i].backward * seconds_per_flop};
  }
  return costs;
}

std::vector<double> totals_of(std::span<const LinkCost> links) {
  std::vector<double> totals(links.size());
  std::ranges::transform(links, totals.begin(), &LinkCost::total);
  return totals;
}

PipelineCosts pipeline_costs(const PipelineStages& stages, std::span<const LinkCost> links) {
  require(std::ssize(links) == stages.links(stages.count() - 1).last,
          "costs of {} links are not those of a pipeline of {}", links.size(), stages.to_string());
  double all = 0;
  for (const LinkCost& link : links) all += link.total();
  const double unit = all / (3 * stages.ranks()), saved = 1.0 / stages.chunks();
  PipelineCosts costs;
  for (int stage = 0; stage < stages.count(); ++stage) {
    LinkCost sum;
    for (int i = stages.links(stage).first; i < stages.links(stage).last; ++i) {
      const LinkCost& link = links[static_cast<std::size_t>(i)];
      sum.forward += link.forward / unit;
      sum.backward += link.backward / unit;
    }
    costs.stages.push_back({.forward = sum.forward,
                            .backward_input = sum.backward / 2,
                            .backward_weight = sum.backward / 2,
                            .saved_forward = saved,
                            .saved_backward = saved,
                            .saved_weight = saved});
  }
  return costs;
}

}  // namespace orchard
