// What each link of the model's chain costs a micro-batch: counted in FLOPs or measured in seconds.
// Only the proportions matter to whoever balances a pipeline.
#pragma once

#include <map>
#include <span>
#include <vector>

#include "models/flops.h"
#include "models/link_kind.h"
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

// FLOPs, which norms, the lookup and waiting for memory do not have.
std::vector<LinkCost> counted_costs(const ModelConfig& model, const Workload& work);

// `seconds` of each link's kind. Links of a kind that has none are counted, at the mean speed of
// those that have some.
std::vector<LinkCost> measured_costs(const ModelConfig& model, const Workload& work,
                                     const CostByKind& seconds);

// Forward and backward of each link, what cuts are balanced by.
std::vector<double> totals_of(std::span<const LinkCost> links);

// Of a pipeline's stages, for the simulator, in units of the mean time of a rank for one direction
// of a micro-batch: a third of its time. Either half of backward costs half of it. A micro-batch
// saves the same at every stage.
PipelineCosts pipeline_costs(const PipelineStages& stages, std::span<const LinkCost> links);

}  // namespace orchard
