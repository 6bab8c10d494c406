// Every schedule the trainer can be asked for, through the checks and the simulator: whole, in
// order, free of deadlock, within its memory, and as fast as its paper says.
#include "parallel/pipeline_schedule.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "kernels/core/error.h"
#include "parallel/pipeline_simulation.h"

namespace orchard {
namespace {

using ::testing::HasSubstr;
using Kind = ScheduleKind;

// Whole numbers, so that sums of times are exact.
struct Times {
  double forward, backward_input, backward_weight;
};

StageCost cost_of(const Times& t) {
  return {.forward = t.forward,
          .backward_input = t.backward_input,
          .backward_weight = t.backward_weight};
}

std::vector<int> chunks_of(Kind kind) {
  if (kind == Kind::interleaved) return {1, 2, 3, 4};
  return {kind == Kind::zero_bubble_v ? 2 : 1};
}

void for_all_shapes(const std::function<void(const ScheduleShape&)>& visit) {
  for (const Kind kind : schedule_kinds) {
    for (const int chunks : chunks_of(kind)) {
      for (int ranks = 1; ranks <= 16; ++ranks) {
        for (int m = 1; m <= 64; ++m) {
          visit({.kind = kind, .ranks = ranks, .chunks = chunks, .micro_batches = m});
          if (::testing::Test::HasFailure()) return;  // one is enough to read
        }
      }
    }
  }
}

std::string describe(const ScheduleShape& s) {
  return fmt::format("{}, {} ranks, {} chunks, {} micro-batches", name_of(s.kind), s.ranks,
                     s.chunks, s.micro_batches);
}

// Each stage costs `of_stage`; a rank `chunks` times that.
PipelineTimeline run(const ScheduleShape& shape, const Times& of_stage) {
  const PipelineSchedule schedule = make_schedule(shape);
  return simulate(schedule, PipelineCosts::even(schedule, cost_of(of_stage) * shape.chunks));
}

TEST(PipelineSchedule, EveryShapeIsFreeOfDeadlockAndWithinItsBound) {
  for_all_shapes([](const ScheduleShape& shape) {
    const PipelineSchedule schedule = make_schedule(shape);
    const PipelineCosts costs = PipelineCosts::even(schedule, StageCost{} * shape.chunks);
    PipelineTimeline timeline;
    ASSERT_NO_THROW(timeline = simulate(schedule, costs)) << describe(shape);
    for (std::size_t rank = 0; rank < timeline.ranks.size(); ++rank) {
      ASSERT_LE(timeline.ranks[rank].peak_saved, schedule.saved_bound[rank]) << describe(shape);
    }
  });
}

TEST(PipelineSchedule, EveryShapeSurvivesUnevenStagesAndSlowMessages) {
  for_all_shapes([](const ScheduleShape& shape) {
    if (shape.micro_batches % 7 != 0) return;
    const PipelineSchedule schedule = make_schedule(shape);
    PipelineCosts costs{.stages = {}, .message = 0.4};
    for (int stage = 0; stage < schedule.stages(); ++stage)
      costs.stages.push_back(StageCost{} * (1 + stage * 5 % 3));
    ASSERT_NO_THROW(simulate(schedule, costs)) << describe(shape);
  });
}

TEST(PipelineSchedule, TheBoundIsReachedSoItIsNotTooGenerous) {
  for (const Kind kind : schedule_kinds) {
    for (const int chunks : chunks_of(kind)) {
      const ScheduleShape shape{.kind = kind, .ranks = 5, .chunks = chunks, .micro_batches = 20};
      const PipelineSchedule schedule = make_schedule(shape);
      const PipelineTimeline timeline =
          simulate(schedule, PipelineCosts::even(schedule, StageCost{} * chunks));
      for (std::size_t rank = 0; rank < 5; ++rank)
        EXPECT_EQ(timeline.ranks[rank].peak_saved, schedule.saved_bound[rank]) << describe(shape);
    }
  }
}

// Of times where B_in and W differ, and where W is the shortest as ZB-H1's formula asks.
constexpr Times time_choices[] = {{1, 1, 1}, {2, 3, 1}, {3, 4, 2}, {7, 9, 5}, {5, 5, 5}, {4, 2, 1}};

TEST(PipelineBubble, OneForwardOneBackwardAndGpipe) {
  for (const Kind kind : {Kind::one_forward_one_backward, Kind::gpipe}) {
    for (int p = 1; p <= 16; ++p) {
      for (int m = 1; m <= 64; ++m) {
        for (const Times& t : time_choices) {
          const double work = t.forward + t.backward_input + t.backward_weight;
          const PipelineTimeline timeline =
              run({.kind = kind, .ranks = p, .chunks = 1, .micro_batches = m}, t);
          ASSERT_EQ(timeline.bubble(), (p - 1) * work) << name_of(kind) << " p " << p << " m " << m;
          ASSERT_EQ(timeline.makespan(), (m + p - 1) * work);
        }
      }
    }
  }
}

TEST(PipelineBubble, InterleavedIsShorterByTheNumberOfChunks) {
  for (int v = 1; v <= 4; ++v) {
    for (int p = 1; p <= 16; ++p) {
      for (int m = p; m <= 64; m += p) {
        for (const Times& t : time_choices) {
          // Times of a stage: a rank's are v times as long, and the bubble a v-th of theirs.
          const double work = t.forward + t.backward_input + t.backward_weight;
          const PipelineTimeline timeline =
              run({.kind = Kind::interleaved, .ranks = p, .chunks = v, .micro_batches = m}, t);
          ASSERT_EQ(timeline.bubble(), (p - 1) * work) << "v " << v << " p " << p << " m " << m;
          ASSERT_EQ(timeline.makespan(), (m * v + p - 1) * work);
        }
      }
    }
  }
}

TEST(PipelineBubble, ZeroBubbleH1) {
  for (int p = 1; p <= 16; ++p) {
    for (int m = p; m <= 64; ++m) {
      for (const Times& t : time_choices) {
        const PipelineTimeline timeline =
            run({.kind = Kind::zero_bubble_h1, .ranks = p, .chunks = 1, .micro_batches = m}, t);
        const double bubble = (p - 1) * (t.forward + t.backward_input - t.backward_weight);
        ASSERT_EQ(timeline.bubble(), bubble) << "p " << p << " m " << m;
        ASSERT_EQ(timeline.makespan(),
                  m * (t.forward + t.backward_input + t.backward_weight) + bubble);
      }
      const PipelineTimeline long_weights = run(
          {.kind = Kind::zero_bubble_h1, .ranks = p, .chunks = 1, .micro_batches = m}, {3, 4, 5});
      ASSERT_EQ(long_weights.bubble(), (p - 1) * 4) << "p " << p << " m " << m;
    }
  }
}

// A last group that is not full costs time, but never more than chunks have gained.
TEST(PipelineBubble, InterleavedIsNeverLongerThan1F1B) {
  for (int v = 2; v <= 4; ++v) {
    for (int p = 1; p <= 16; ++p) {
      for (int m = 1; m <= 3 * p; ++m) {
        const auto makespan = [&](Kind kind, int chunks) {
          const double time = 12.0 / chunks;
          return run({.kind = kind, .ranks = p, .chunks = chunks, .micro_batches = m},
                     {time, time, time})
              .makespan();
        };
        ASSERT_LE(makespan(Kind::interleaved, v), makespan(Kind::one_forward_one_backward, 1))
            << "v " << v << " p " << p << " m " << m;
      }
    }
  }
}

TEST(PipelineBubble, ZeroBubbleVHasNone) {
  for (int p = 1; p <= 16; ++p) {
    for (int m = 2 * p - 1; m <= 64; ++m) {
      const PipelineTimeline timeline = run(
          {.kind = Kind::zero_bubble_v, .ranks = p, .chunks = 2, .micro_batches = m}, {3, 3, 3});
      for (const RankTimeline& rank : timeline.ranks)
        ASSERT_EQ(rank.bubble(), 0) << "p " << p << " m " << m;
      // Rank i starts when the first micro-batch arrives, i stages of 3 later.
      ASSERT_EQ(timeline.makespan(), 18 * m + 3 * (p - 1));
    }
  }
}

TEST(PipelineBubble, ZeroBubbleVIsShortAlsoWhereTimesDiffer) {
  for (const Times& t : time_choices) {
    for (const int p : {2, 4, 8, 16}) {
      const auto bubble = [&](Kind kind, int chunks) {
        return run({.kind = kind, .ranks = p, .chunks = chunks, .micro_batches = 64}, t).bubble() /
               chunks;
      };
      EXPECT_LT(bubble(Kind::zero_bubble_v, 2), bubble(Kind::one_forward_one_backward, 1))
          << t.forward << " " << t.backward_input << " " << t.backward_weight << " p " << p;
    }
  }
}

TEST(PipelineSchedule, StagesAndPlacesAreInverse) {
  for (const Kind kind : {Kind::interleaved, Kind::zero_bubble_v}) {
    const PipelineSchedule s =
        make_schedule({.kind = kind, .ranks = 5, .chunks = 2, .micro_batches = 3});
    for (int stage = 0; stage < s.stages(); ++stage) {
      const StagePlace place = s.place_of(stage);
      EXPECT_EQ(s.stage_at(place.rank, place.chunk), stage);
    }
    // The last stage holds the head: a vee has it where the lookup is.
    EXPECT_EQ(s.place_of(s.stages() - 1).rank, kind == Kind::zero_bubble_v ? 0 : 4);
  }
}

TEST(PipelineSchedule, RefusesNumbersAKindCannotHave) {
  const auto message = [](const ScheduleShape& shape) {
    try {
      make_schedule(shape);
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_THAT(message({.kind = Kind::zero_bubble_v, .ranks = 4, .chunks = 1, .micro_batches = 8}),
              HasSubstr("zb-v has 2 chunks"));
  EXPECT_THAT(message({.kind = Kind::gpipe, .ranks = 4, .chunks = 2, .micro_batches = 8}),
              HasSubstr("gpipe has 1 chunk a rank"));
  EXPECT_THAT(message({.kind = Kind::gpipe, .ranks = 0}), HasSubstr("0 stages"));
  EXPECT_THAT(message({.kind = Kind::gpipe, .ranks = 2, .chunks = 1, .micro_batches = 0}),
              HasSubstr("0 micro-batches"));
}

}  // namespace
}  // namespace orchard
