#include "train/link_costs.h"

#include <algorithm>

#include "kernels/core/error.h"
#include "models/chain.h"

namespace orchard {

namespace {

// What backward computes again: the forward of blocks.
double recomputed(const ModelConfig& model, LinkKind kind, const FlopCounts& flops) {
  const bool is_block = kind == LinkKind::vision_block || kind == LinkKind::dense_layer ||
                        kind == LinkKind::sparse_layer;
  return is_block && model.recompute == Recompute::blocks ? flops.forward : 0;
}

LinkCost counted_cost(const ModelConfig& model, LinkKind kind, const FlopCounts& flops) {
  switch (kind) {
    case LinkKind::head:
      return {.forward = flops.training};
    case LinkKind::stem:
      return {.forward = flops.forward, .backward = flops.weight_half};
    default:
      return {.forward = flops.forward,
              .backward = flops.training - flops.forward + recomputed(model, kind, flops)};
  }
}

// What a stage keeps of a micro-batch.
struct StageSizes {
  double forward = 0, backward = 0, weight = 0;
};

StageSizes sizes_of(std::span<const LinkHalves> links, BackwardHalves halves) {
  StageSizes sizes;
  for (const LinkHalves& link : links) {
    // In turn: what the links before keep, and this one's.
    sizes.backward = std::max(sizes.backward, sizes.forward + link.saved.backward);
    sizes.forward += link.saved.forward;
    sizes.weight += link.saved.backward;
  }
  if (halves == BackwardHalves::apart) sizes.backward = sizes.weight;
  return sizes;
}

}  // namespace

std::vector<LinkCost> counted_costs(const ModelConfig& model, const Workload& work) {
  const std::vector<LinkKind> kinds = link_kinds(model);
  const std::vector<FlopCounts> flops = count_link_flops(model, work);
  std::vector<LinkCost> costs;
  for (std::size_t i = 0; i < kinds.size(); ++i)
    costs.push_back(counted_cost(model, kinds[i], flops[i]));
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

std::vector<LinkHalves> link_halves(const ModelConfig& model, const Workload& work) {
  const std::vector<LinkKind> kinds = link_kinds(model);
  const std::vector<FlopCounts> flops = count_link_flops(model, work);
  const std::vector<SavedValues> saved = count_saved_values(model, work);
  std::vector<LinkHalves> halves;
  for (std::size_t i = 0; i < kinds.size(); ++i) {
    const double backward = counted_cost(model, kinds[i], flops[i]).backward;
    // Links without products, and the head, have nothing but an input half.
    const double share = backward > 0 ? 1 - flops[i].weight_half / backward : 1;
    halves.push_back({.input_share = share, .saved = saved[i]});
  }
  return halves;
}

PipelineCosts pipeline_costs(const PipelineStages& stages, const PipelineSchedule& schedule,
                             std::span<const LinkCost> links, std::span<const LinkHalves> halves) {
  const int count = stages.links(stages.count() - 1).last;
  require(std::ssize(links) == count && std::ssize(halves) == count,
          "costs of {} links and halves of {} are not those of a pipeline of {}", links.size(),
          halves.size(), stages.to_string());
  double all = 0, kept = 0;
  for (const LinkCost& link : links) all += link.total();
  for (const LinkHalves& link : halves) kept += link.saved.without_recompute;
  const double unit = all / (3 * stages.ranks()), size_unit = kept / stages.ranks();
  PipelineCosts costs;
  for (int stage = 0; stage < stages.count(); ++stage) {
    const auto [first, last] = stages.links(stage);
    StageCost sum{.forward = 0, .backward_input = 0, .backward_weight = 0};
    for (auto i = static_cast<std::size_t>(first); i < static_cast<std::size_t>(last); ++i) {
      const double backward = links[i].backward / unit, input = backward * halves[i].input_share;
      sum.forward += links[i].forward / unit;
      sum.backward_input += input;
      sum.backward_weight += backward - input;
    }
    const bool apart = schedule.splits_backward(stages.place_of(stage).rank);
    const StageSizes sizes = sizes_of(
        halves.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(last - first)),
        apart ? BackwardHalves::apart : BackwardHalves::in_turn);
    sum.saved_forward = sizes.forward / size_unit;
    sum.saved_backward = sizes.backward / size_unit;
    sum.saved_weight = sizes.weight / size_unit;
    costs.stages.push_back(sum);
  }
  return costs;
}

}  // namespace orchard
