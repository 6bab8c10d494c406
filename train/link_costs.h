// What each link of the model's chain costs a micro-batch: counted in FLOPs or measured in seconds.
// Only the proportions matter to whoever balances a pipeline.
#pragma once

#include <map>
#include <span>
#include <vector>

#include "models/flops.h"
#include "models/link_kind.h"
#include "models/saved_values.h"
#include "parallel/pipeline_simulation.h"
#include "parallel/pipeline_stages.h"

namespace orchard {

struct LinkCost {
  double forward = 0, backward = 0;

  double total() const { return forward + backward; }
  bool operator==(const LinkCost&) const = default;
};

// Of one link of each kind, as far as it is known.
using CostByKind = std::map<LinkKind, LinkCost>;

// FLOPs as the links spend them: what backward recomputes is its own, the head takes its gradients in
// forward (models/head.h), and nothing is before the stem that wants one. Norms, the lookup and
// waiting for memory have none.
std::vector<LinkCost> counted_costs(const ModelConfig& model, const Workload& work);

// `seconds` of each link's kind. Links of a kind that has none are counted, at the mean speed of
// those that have some.
std::vector<LinkCost> measured_costs(const ModelConfig& model, const Workload& work,
                                     const CostByKind& seconds);

// Forward and backward of each link, what cuts are balanced by.
std::vector<double> totals_of(std::span<const LinkCost> links);

// How backward of a link falls into halves, and what a micro-batch keeps there.
struct LinkHalves {
  double input_share = 1;  // of the cost, by FLOPs
  SavedValues saved;
};

std::vector<LinkHalves> link_halves(const ModelConfig& model, const Workload& work);

// Of a pipeline's stages, for the simulator. Times are in units of the mean time of a rank for one
// direction of a micro-batch: a third of its time. Sizes are in units of what a rank keeps of one, on
// the mean, between forward and backward where nothing is recomputed. Where the halves of backward
// come in turn, only one link at a time has its gradients and what it recomputed. `schedule`: of the
// stages.
PipelineCosts pipeline_costs(const PipelineStages& stages, const PipelineSchedule& schedule,
                             std::span<const LinkCost> links, std::span<const LinkHalves> halves);

}  // namespace orchard
