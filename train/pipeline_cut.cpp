#include "train/pipeline_cut.h"

#include <fmt/ranges.h>

#include <numeric>

#include "kernels/core/error.h"
#include "parallel/pipeline_balance.h"

namespace orchard {
namespace {

std::vector<int> cuts_asked_for(const ModelConfig& model, const std::vector<int>& stage_blocks,
                                int stages) {
  const int links = link_count(model);
  require(std::ssize(stage_blocks) == stages,
          "stage_blocks {} are of {} stages, and the pipeline has {}", fmt::join(stage_blocks, ","),
          stage_blocks.size(), stages);
  std::vector<int> cuts(stage_blocks.size() + 1);
  std::partial_sum(stage_blocks.begin(), stage_blocks.end(), cuts.begin() + 1);
  require(cuts.back() == links,
          "stage_blocks {} are {} in all, and the model is a chain of {} blocks",
          fmt::join(stage_blocks, ","), cuts.back(), links);
  return cuts;
}

}  // namespace

PipelineStages cut_pipeline(const ModelConfig& model, const PipelineOptions& options, int ranks,
                            std::span<const LinkCost> costs) {
  if (ranks == 1) return {};
  const int chunks = options.chunks_of_rank(), stages = ranks * chunks;
  if (!options.stage_blocks.empty())
    return {options.schedule, ranks, chunks, cuts_asked_for(model, options.stage_blocks, stages)};
  return {options.schedule, ranks, chunks, balanced_cuts(totals_of(costs), stages)};
}

PipelineStages cut_pipeline(const ModelConfig& model, const PipelineOptions& options, int ranks,
                            const Workload& work) {
  return cut_pipeline(model, options, ranks, counted_costs(model, work));
}

}  // namespace orchard
