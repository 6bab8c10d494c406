// What `orchard plan` computes: pipeline schedules simulated on the costs of a chain of blocks.
#pragma once

#include <string>
#include <vector>

#include "train/link_costs.h"

namespace orchard {

struct PlanRequest {
  int stages = 1, chunks = 0, micro_batches = 1;  // chunks 0: as the schedule has them
  StageCost cost;                                 // of a rank, or of a block that costs 1
  double message = 0;
  std::vector<double> blocks;      // none: stages are equal
  std::vector<LinkCost> links;     // of a run's model, instead of `cost` and `blocks`
  std::vector<LinkHalves> halves;  // of `links`
  double memory_limit = 0;         // 0: none
};

struct Plan {
  ScheduleKind kind;
  PipelineSchedule schedule;
  PipelineTimeline timeline;
  std::vector<int> cuts;  // of the blocks, where there are any

  double peak_saved() const;  // of the rank that saves most
};

// Throws ConfigurationError for what is no schedule, naming those there are.
ScheduleKind parse_schedule(const std::string& text);

// "24x1,2,32x3": 24 blocks that cost 1, one that costs 2, 32 that cost 3. Throws ConfigurationError
// for anything else.
std::vector<double> parse_blocks(const std::string& list);

// Throws Error where the schedule is impossible.
Plan make_plan(ScheduleKind kind, const PlanRequest& request);

// One of every schedule. Only interleaved takes another number of chunks than its own.
std::vector<Plan> all_plans(const PlanRequest& request);

}  // namespace orchard
