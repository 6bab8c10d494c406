// What a pipeline schedule does, without running it: is it whole and in order, does it end, how long
// does it take, where does it idle, how much does it save.
#pragma once

#include <vector>

#include "parallel/pipeline_schedule.h"

namespace orchard {

// Throws Error naming rank and action unless
// - every forward and both halves of every backward are there once, after what they need from their
//   own rank;
// - each chunk runs its forwards, its input halves and its weight halves in micro-batch order, so
//   that gradients are added in that order;
// - two messages of one kind between the same ranks are needed in the order in which they are sent;
// - no rank holds more than its saved_bound.
void check_schedule(const PipelineSchedule& schedule);

// Of one stage and one micro-batch. Times and sizes are in units of the caller's choice.
struct StageCost {
  double forward = 1, backward_input = 1, backward_weight = 1;  // times
  // Saved activations: from the start of forward, while the input half runs, from then until the
  // end of the weight half. With recomputation the first is small, and the other two are not: what
  // the weight half needs is recomputed before the input half.
  double saved_forward = 1, saved_backward = 1, saved_weight = 1;

  double time() const { return forward + backward_input + backward_weight; }
  StageCost operator*(double factor) const;
};

struct PipelineCosts {
  std::vector<StageCost> stages;  // as many as the schedule has
  double message = 0;             // from the end of an action to its result on another rank

  // Stages that are equal, `of_rank` being the sum over the chunks of a rank.
  static PipelineCosts even(const PipelineSchedule& schedule, const StageCost& of_rank);
};

struct TimedAction {
  PipelineAction action;
  double start = 0, end = 0;
};

struct RankTimeline {
  std::vector<TimedAction> actions;
  double busy = 0;
  double peak_saved = 0;
  PipelineAction peak_at;  // the first action at which that much is saved

  double start() const { return actions.front().start; }
  double end() const { return actions.back().end; }
  // Idle time between the first and the last action: the bubble of the literature. Before and after
  // it the rank may work on other steps, unless something waits for all ranks.
  double bubble() const { return end() - start() - busy; }
};

struct PipelineTimeline {
  std::vector<RankTimeline> ranks;

  double makespan() const;  // the last end; the first rank starts at 0
  double bubble() const;    // of the rank with the longest
  // Work by the makespan times the ranks: 1 is a step without any idle time.
  double utilisation() const;
};

// Runs every rank's list, each action as early as the list and its inputs allow. Sending takes no
// time of a rank. Throws Error as check_schedule does, and where ranks wait for each other for ever,
// naming what each of them waits for.
PipelineTimeline simulate(const PipelineSchedule& schedule, const PipelineCosts& costs);

// Throws Error naming the first rank that saves more than `limit`, and where.
void require_within(const PipelineTimeline& timeline, double limit);

}  // namespace orchard
