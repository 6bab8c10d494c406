// Which links of the model's chain each stage of a pipeline has, and which rank has which stages.
#pragma once

#include <vector>

#include "parallel/pipeline_schedule.h"

namespace orchard {

// Links [first, last) of the model's chain.
struct LinkRange {
  int first = 0, last = 0;

  bool contains(int link) const { return link >= first && link < last; }
  bool operator==(const LinkRange&) const = default;
};

class PipelineStages {
 public:
  // No pipeline: one rank has the whole chain, however long.
  PipelineStages() = default;
  // `cuts` has the first link of each stage, then the number of links: what balanced_cuts returns.
  // Throws Error naming a stage without links, and where the kind cannot have so many chunks.
  PipelineStages(ScheduleKind kind, int ranks, int chunks, std::vector<int> cuts);

  int ranks() const { return map_.ranks; }
  int chunks() const { return map_.chunks; }
  int count() const { return map_.stages(); }
  LinkRange links(int stage) const;
  StagePlace place_of(int stage) const { return map_.place_of(stage); }
  int stage_at(int rank, int chunk) const { return map_.stage_at(rank, chunk); }

  // Of a rank's chunks, in their order, which is also that of the chain. Empty without a pipeline.
  std::vector<LinkRange> links_of_rank(int rank) const;
  // The rank that has a link.
  int rank_of(int link) const;

  // What the ranks do in a step of so many micro-batches.
  PipelineSchedule schedule(int micro_batches) const;

  // "1f1b, blocks 0-3 | 4-9".
  std::string to_string() const;

 private:
  ScheduleKind kind_ = ScheduleKind::one_forward_one_backward;
  PipelineSchedule map_;  // without actions
  std::vector<int> cuts_;
};

}  // namespace orchard
