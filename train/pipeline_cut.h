// How a run cuts its model into pipeline stages.
#pragma once

#include <span>
#include <vector>

#include "train/link_costs.h"

namespace orchard {

// By what the links of the chain are dealt to the stages.
enum class PipelineBalance : std::uint8_t {
  counted,   // FLOPs: the same cut on every machine
  measured,  // times taken on this one, kept in the run folder
};

struct PipelineOptions {
  ScheduleKind schedule = ScheduleKind::one_forward_one_backward;
  int chunks = 0;  // stages that a rank has; 0: as the schedule has them
  PipelineBalance balance = PipelineBalance::counted;
  std::vector<int> stage_blocks;  // how many links each stage has; empty: balanced

  // A cut that is asked for needs no times.
  bool is_measured() const { return balance == PipelineBalance::measured && stage_blocks.empty(); }
  int chunks_of_rank() const { return chunks > 0 ? chunks : default_chunks(schedule); }
};

// The stages of a pipeline of so many ranks, balanced by the cost of each link, forward and
// backward: no cut has a smaller largest stage. With one rank there is no pipeline, whatever the
// options. Throws Error naming the rule that the options break.
PipelineStages cut_pipeline(const ModelConfig& model, const PipelineOptions& options, int ranks,
                            std::span<const LinkCost> costs);
// Balanced by the FLOPs for `work`, whatever the options say of the balance.
PipelineStages cut_pipeline(const ModelConfig& model, const PipelineOptions& options, int ranks,
                            const Workload& work);

}  // namespace orchard
