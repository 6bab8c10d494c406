#include "parallel/pipeline_simulation.h"

#include <algorithm>
#include <optional>

#include "kernels/core/error.h"

namespace orchard {
namespace {

using Op = PipelineOp;

// Saved activations of a rank, at the time of the action that is about to run.
class SavedMemory {
 public:
  // What the action adds before it runs and what it leaves after.
  void run(const PipelineAction& action, const StageCost& cost, RankTimeline& rank) {
    switch (action.op) {
      case Op::forward:
        change(cost.saved_forward, action, rank);
        break;
      case Op::backward_input:
        change(cost.saved_backward - cost.saved_forward, action, rank);
        change(cost.saved_weight - cost.saved_backward, action, rank);
        break;
      case Op::backward_weight:
        change(-cost.saved_weight, action, rank);
        break;
      case Op::backward:
        change(cost.saved_backward - cost.saved_forward, action, rank);
        change(-cost.saved_backward, action, rank);
        break;
    }
  }

 private:
  void change(double by, const PipelineAction& action, RankTimeline& rank) {
    saved_ += by;
    if (saved_ <= rank.peak_saved) return;
    rank.peak_saved = saved_;
    rank.peak_at = action;
  }

  double saved_ = 0;
};

double time_of(Op op, const StageCost& cost) {
  switch (op) {
    case Op::forward:
      return cost.forward;
    case Op::backward_input:
      return cost.backward_input;
    case Op::backward_weight:
      return cost.backward_weight;
    case Op::backward:
      return cost.backward_input + cost.backward_weight;
  }
  return 0;
}

class Simulation {
 public:
  Simulation(const PipelineSchedule& schedule, const PipelineCosts& costs)
      : schedule_(schedule), costs_(costs), saved_(schedule.actions.size()) {
    const auto pairs = static_cast<std::size_t>(schedule.stages() * schedule.micro_batches);
    forward_end_.resize(pairs);
    gradient_end_.resize(pairs);
    timeline_.ranks.resize(schedule.actions.size());
  }

  PipelineTimeline run() {
    // A rank runs until it must wait; whoever ends what it may wait for wakes it.
    for (int rank = 0; rank < schedule_.ranks; ++rank) awake_.push_back(rank);
    while (!awake_.empty()) {
      const int rank = awake_.back();
      awake_.pop_back();
      while (step(rank)) {
      }
    }
    require_all_done();
    return std::move(timeline_);
  }

 private:
  using Time = std::optional<double>;

  // A message that an action waits for.
  struct Need {
    int stage = 0;  // that sends it
    Time end;       // of the action that makes it; none: it has not run
  };

  Time& at(std::vector<Time>& times, int stage, int micro_batch) {
    return times[static_cast<std::size_t>(stage * schedule_.micro_batches + micro_batch)];
  }

  // Nothing for the ends of the pipeline and for weight halves.
  std::optional<Need> need_of(int stage, const PipelineAction& a) {
    if (a.op == Op::forward && stage > 0)
      return Need{stage - 1, at(forward_end_, stage - 1, a.micro_batch)};
    const bool takes_gradient = a.op == Op::backward_input || a.op == Op::backward;
    if (takes_gradient && stage + 1 < schedule_.stages())
      return Need{stage + 1, at(gradient_end_, stage + 1, a.micro_batch)};
    return {};
  }

  // Runs the rank's next action; false where there is none or it must wait.
  bool step(int rank_index) {
    const auto r = static_cast<std::size_t>(rank_index);
    RankTimeline& rank = timeline_.ranks[r];
    if (rank.actions.size() == schedule_.actions[r].size()) return false;
    const PipelineAction& action = schedule_.actions[r][rank.actions.size()];
    const int stage = schedule_.stage_at(rank_index, action.chunk);
    double start = rank.actions.empty() ? 0 : rank.end();
    if (const std::optional<Need> need = need_of(stage, action)) {
      if (!need->end) return false;
      const bool local = schedule_.place_of(need->stage).rank == rank_index;
      start = std::max(start, *need->end + (local ? 0 : costs_.message));
    }
    const StageCost& cost = costs_.stages[static_cast<std::size_t>(stage)];
    const double time = time_of(action.op, cost);
    rank.actions.push_back({action, start, start + time});
    rank.busy += time;
    saved_[r].run(action, cost, rank);
    publish(stage, action, start + time);
    return true;
  }

  void publish(int stage, const PipelineAction& action, double end) {
    if (action.op == Op::backward_weight) return;
    const bool forward = action.op == Op::forward;
    at(forward ? forward_end_ : gradient_end_, stage, action.micro_batch) = end;
    const int receiver = forward ? stage + 1 : stage - 1;
    if (receiver >= 0 && receiver < schedule_.stages())
      awake_.push_back(schedule_.place_of(receiver).rank);
  }

  void require_all_done() {
    std::string waiting;
    for (int rank = 0; rank < schedule_.ranks; ++rank) {
      const auto& list = schedule_.actions[static_cast<std::size_t>(rank)];
      const std::size_t done = timeline_.ranks[static_cast<std::size_t>(rank)].actions.size();
      if (done == list.size()) continue;
      const std::optional<Need> need =
          need_of(schedule_.stage_at(rank, list[done].chunk), list[done]);
      waiting +=
          fmt::format("\n  rank {} at action {}, {}, waits for stage {} on rank {}", rank, done,
                      list[done].to_string(), need->stage, schedule_.place_of(need->stage).rank);
    }
    require(waiting.empty(), "ranks wait for each other for ever:{}", waiting);
  }

  const PipelineSchedule& schedule_;
  const PipelineCosts& costs_;
  std::vector<Time> forward_end_, gradient_end_;  // of each (stage, micro-batch)
  std::vector<SavedMemory> saved_;
  std::vector<int> awake_;
  PipelineTimeline timeline_;
};

}  // namespace

StageCost StageCost::operator*(double factor) const {
  return {.forward = forward * factor,
          .backward_input = backward_input * factor,
          .backward_weight = backward_weight * factor,
          .saved_forward = saved_forward * factor,
          .saved_backward = saved_backward * factor,
          .saved_weight = saved_weight * factor};
}

PipelineCosts PipelineCosts::even(const PipelineSchedule& schedule, const StageCost& of_rank) {
  const StageCost of_stage = of_rank * (1.0 / schedule.chunks);
  return {.stages = std::vector<StageCost>(static_cast<std::size_t>(schedule.stages()), of_stage)};
}

double PipelineTimeline::makespan() const {
  double last = 0;
  for (const RankTimeline& rank : ranks) last = std::max(last, rank.end());
  return last;
}

double PipelineTimeline::bubble() const {
  double longest = 0;
  for (const RankTimeline& rank : ranks) longest = std::max(longest, rank.bubble());
  return longest;
}

double PipelineTimeline::utilisation() const {
  double busy = 0;
  for (const RankTimeline& rank : ranks) busy += rank.busy;
  return busy / (makespan() * static_cast<double>(ranks.size()));
}

PipelineTimeline simulate(const PipelineSchedule& schedule, const PipelineCosts& costs) {
  check_schedule(schedule);
  require(costs.stages.size() == static_cast<std::size_t>(schedule.stages()),
          "costs of {} stages for a schedule of {}", costs.stages.size(), schedule.stages());
  return Simulation(schedule, costs).run();
}

void require_within(const PipelineTimeline& timeline, double limit) {
  for (std::size_t rank = 0; rank < timeline.ranks.size(); ++rank) {
    const RankTimeline& r = timeline.ranks[rank];
    require(r.peak_saved <= limit, "rank {} saves {:g} at {}, more than the limit {:g}", rank,
            r.peak_saved, r.peak_at.to_string(), limit);
  }
}

}  // namespace orchard
