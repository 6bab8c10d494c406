// The checks and the simulator themselves: known timelines, and faults they must find.
#include "parallel/pipeline_simulation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/message_of.h"

namespace orchard {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::message_of;
using Op = PipelineOp;

std::vector<std::pair<double, double>> spans(const RankTimeline& rank) {
  std::vector<std::pair<double, double>> result;
  for (const TimedAction& a : rank.actions) result.emplace_back(a.start, a.end);
  return result;
}

PipelineSchedule one_f_one_b(int ranks, int micro_batches) {
  return make_schedule({.ranks = ranks, .chunks = 1, .micro_batches = micro_batches});
}

TEST(PipelineSimulation, TimesOfTwoUnevenStagesByHand) {
  // Rank 0: F0 F1 B0 B1, rank 1: F0 B0 F1 B1; messages take 1.
  const PipelineSchedule schedule = one_f_one_b(2, 2);
  const PipelineCosts costs{.stages = {{.forward = 2, .backward_input = 1, .backward_weight = 2},
                                       {.forward = 3, .backward_input = 4, .backward_weight = 1}},
                            .message = 1};
  const PipelineTimeline timeline = simulate(schedule, costs);
  using Spans = std::vector<std::pair<double, double>>;
  EXPECT_EQ(spans(timeline.ranks[0]), (Spans{{0, 2}, {2, 4}, {12, 15}, {20, 23}}));
  EXPECT_EQ(spans(timeline.ranks[1]), (Spans{{3, 6}, {6, 11}, {11, 14}, {14, 19}}));
  EXPECT_EQ(timeline.ranks[0].busy, 10);
  EXPECT_EQ(timeline.ranks[0].bubble(), 13);
  EXPECT_EQ(timeline.ranks[1].bubble(), 0);
  EXPECT_EQ(timeline.bubble(), 13);
  EXPECT_EQ(timeline.makespan(), 23);
}

TEST(PipelineSimulation, SavedActivationsByHand) {
  PipelineSchedule schedule = one_f_one_b(1, 2);
  schedule.saved_bound = {2};
  const auto peak = [&](std::vector<PipelineAction> actions, const StageCost& cost) {
    schedule.actions = {std::move(actions)};
    const PipelineTimeline timeline = simulate(schedule, {.stages = {cost}});
    return std::pair(timeline.ranks[0].peak_saved, timeline.ranks[0].peak_at);
  };
  const std::vector<PipelineAction> joined{
      {Op::forward, 0, 0}, {Op::forward, 0, 1}, {Op::backward, 0, 0}, {Op::backward, 0, 1}};
  const std::vector<PipelineAction> split{{Op::forward, 0, 0},         {Op::forward, 0, 1},
                                          {Op::backward_input, 0, 0},  {Op::backward_input, 0, 1},
                                          {Op::backward_weight, 0, 0}, {Op::backward_weight, 0, 1}};
  using Peak = std::pair<double, PipelineAction>;
  // Everything is kept, and the weight half needs less.
  const StageCost kept{.saved_forward = 10, .saved_backward = 11, .saved_weight = 6};
  EXPECT_EQ(peak(joined, kept), Peak(21, {Op::backward, 0, 0}));
  EXPECT_EQ(peak(split, kept), Peak(21, {Op::backward_input, 0, 0}));
  // Recomputed: what the weight halves wait with outweighs what forwards keep.
  const StageCost recomputed{.saved_forward = 1, .saved_backward = 11, .saved_weight = 6};
  EXPECT_EQ(peak(joined, recomputed), Peak(12, {Op::backward, 0, 0}));
  EXPECT_EQ(peak(split, recomputed), Peak(17, {Op::backward_input, 0, 1}));
}

TEST(PipelineSimulation, EvenCostsAddUpToTheRank) {
  const PipelineSchedule schedule = make_schedule(
      {.kind = ScheduleKind::interleaved, .ranks = 3, .chunks = 4, .micro_batches = 6});
  const StageCost of_rank{.forward = 4, .backward_input = 8, .backward_weight = 12};
  const PipelineTimeline timeline = simulate(schedule, PipelineCosts::even(schedule, of_rank));
  for (const RankTimeline& rank : timeline.ranks) EXPECT_EQ(rank.busy, 6 * of_rank.time());
}

TEST(PipelineSimulation, NamesWhoWaitsForWhomInADeadlock) {
  // Each rank is in order by itself, but rank 0 wants a gradient before it sends the activation
  // that rank 1 wants before it sends a gradient.
  PipelineSchedule schedule = one_f_one_b(2, 2);
  schedule.actions[0] = {
      {Op::forward, 0, 0}, {Op::backward, 0, 0}, {Op::forward, 0, 1}, {Op::backward, 0, 1}};
  schedule.actions[1] = {
      {Op::forward, 0, 0}, {Op::forward, 0, 1}, {Op::backward, 0, 0}, {Op::backward, 0, 1}};
  schedule.saved_bound = {2, 2};
  EXPECT_NO_THROW(check_schedule(schedule));
  EXPECT_THAT(message_of([&] { simulate(schedule, PipelineCosts::even(schedule, {})); }),
              AllOf(HasSubstr("for ever"),
                    HasSubstr("rank 0 at action 1, backward of micro-batch 0, chunk 0, waits for "
                              "stage 1 on rank 1"),
                    HasSubstr("rank 1 at action 1, forward of micro-batch 1, chunk 0, waits for "
                              "stage 0 on rank 0")));
}

TEST(PipelineSimulation, RefusesMoreMemoryThanThereIs) {
  const PipelineSchedule schedule = one_f_one_b(4, 8);
  const PipelineTimeline timeline = simulate(schedule, PipelineCosts::even(schedule, {}));
  EXPECT_NO_THROW(require_within(timeline, 4));
  EXPECT_THAT(message_of([&] { require_within(timeline, 3.5); }),
              AllOf(HasSubstr("rank 0 saves 4"), HasSubstr("micro-batch 3")));
}

// Faults put into every schedule: into each list, at each place.
class PipelineFaults : public ::testing::TestWithParam<ScheduleKind> {
 protected:
  PipelineFaults()
      : sound_(make_schedule(
            {.kind = GetParam(), .ranks = 3, .chunks = chunks(), .micro_batches = 6})) {}

  // `damage(list, i)` does harm at place i or returns false where it cannot.
  template <class Damage>
  void expect_refused(const Damage& damage, const std::string& why) const {
    int damaged = 0;
    for (std::size_t rank = 0; rank < sound_.actions.size(); ++rank) {
      for (std::size_t i = 0; i < sound_.actions[rank].size(); ++i) {
        PipelineSchedule schedule = sound_;
        if (!damage(schedule.actions[rank], i)) continue;
        ++damaged;
        EXPECT_THAT(message_of([&] { check_schedule(schedule); }), HasSubstr(why))
            << "rank " << rank << ", action " << i;
      }
    }
    EXPECT_GT(damaged, 0);
  }

  using List = std::vector<PipelineAction>;
  PipelineSchedule sound_;

 private:
  static int chunks() {
    const bool many =
        GetParam() == ScheduleKind::interleaved || GetParam() == ScheduleKind::zero_bubble_v;
    return many ? 2 : 1;
  }
};

TEST_P(PipelineFaults, ALostAction) {
  // Found where the next of its kind comes too early, or at the end of the list.
  expect_refused(
      [](List& list, std::size_t i) {
        list.erase(list.begin() + static_cast<std::ptrdiff_t>(i));
        return true;
      },
      "rank");
}

TEST_P(PipelineFaults, ARepeatedAction) {
  expect_refused(
      [](List& list, std::size_t i) {
        list.push_back(list[i]);
        return true;
      },
      "is listed again");
}

TEST_P(PipelineFaults, GradientsAddedInAnotherOrder) {
  expect_refused(
      [](List& list, std::size_t i) {
        for (std::size_t j = i + 1; j < list.size(); ++j) {
          if (list[j].op != list[i].op || list[j].chunk != list[i].chunk) continue;
          std::swap(list[i].micro_batch, list[j].micro_batch);
          return true;
        }
        return false;
      },
      "in micro-batch order");
}

TEST_P(PipelineFaults, BackwardBeforeItsForward) {
  expect_refused(
      [](List& list, std::size_t i) {
        const bool first = i > 0 && list[i].op != Op::forward && list[i].micro_batch == 0;
        if (first)
          std::rotate(list.begin(), list.begin() + static_cast<std::ptrdiff_t>(i),
                      list.begin() + static_cast<std::ptrdiff_t>(i) + 1);
        return first;
      },
      "before what it needs");
}

TEST_P(PipelineFaults, AnActionOfNoMicroBatchOrChunk) {
  expect_refused([](List& list, std::size_t i) { return list[i].micro_batch = 6; },
                 "does not exist");
  expect_refused(
      [](List& list, std::size_t i) {
        list[i].chunk = -1;
        return true;
      },
      "does not exist");
}

TEST_P(PipelineFaults, AForwardTooEarlyForTheMemory) {
  PipelineSchedule schedule = sound_;
  for (int& bound : schedule.saved_bound) --bound;
  EXPECT_THAT(message_of([&] { check_schedule(schedule); }), HasSubstr("bound"));
}

TEST_P(PipelineFaults, AMissingList) {
  PipelineSchedule schedule = sound_;
  schedule.actions.pop_back();
  EXPECT_THAT(message_of([&] { check_schedule(schedule); }), HasSubstr("2 lists"));
}

INSTANTIATE_TEST_SUITE_P(All, PipelineFaults, ::testing::ValuesIn(schedule_kinds),
                         [](const auto& instance) {
                           std::string name(name_of(instance.param));
                           std::erase(name, '-');
                           return name;
                         });

TEST(PipelineSimulation, MessagesThatOvertakeEachOtherAreRefused) {
  // Chunk 1 before chunk 0 on the receiver only: legal for either rank by itself.
  PipelineSchedule schedule{.ranks = 2, .chunks = 2, .micro_batches = 2};
  const auto list = [](std::initializer_list<std::pair<int, int>> forwards) {
    std::vector<PipelineAction> actions;
    actions.reserve(2 * forwards.size());
    for (const auto& [chunk, m] : forwards) actions.push_back({Op::forward, chunk, m});
    for (const int chunk : {1, 0}) {
      for (const int m : {0, 1}) actions.push_back({Op::backward, chunk, m});
    }
    return actions;
  };
  schedule.actions = {list({{0, 0}, {0, 1}, {1, 0}, {1, 1}}),
                      list({{0, 0}, {1, 0}, {0, 1}, {1, 1}})};
  schedule.saved_bound = {4, 4};
  EXPECT_THAT(message_of([&] { check_schedule(schedule); }),
              HasSubstr("rank 0 sends activations to rank 1 in another order"));
}

}  // namespace
}  // namespace orchard
