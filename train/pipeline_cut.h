// How a run cuts its model into pipeline stages.
#pragma once

#include <vector>

#include "models/flops.h"
#include "parallel/pipeline_stages.h"

namespace orchard {

struct PipelineOptions {
  ScheduleKind schedule = ScheduleKind::one_forward_one_backward;
  int chunks = 0;                 // stages that a rank has; 0: as the schedule has them
  std::vector<int> stage_blocks;  // how many links each stage has; empty: balanced

  int chunks_of_rank() const { return chunks > 0 ? chunks : default_chunks(schedule); }
};

// The stages of a pipeline of so many ranks. Balanced by the FLOPs of each link for `work`, forward
// and backward: no cut has a smaller largest stage. With one rank there is no pipeline, whatever the
// options. Throws Error naming the rule that the options break.
PipelineStages cut_pipeline(const ModelConfig& model, const PipelineOptions& options, int ranks,
                            const Workload& work);

}  // namespace orchard
