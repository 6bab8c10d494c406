#include "parallel/pipeline_balance.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "kernels/core/error.h"
#include "parallel/random.h"

namespace orchard {
namespace {

using ::testing::ElementsAre;

struct Quality {
  double largest = std::numeric_limits<double>::infinity();
  double squares = std::numeric_limits<double>::infinity();
  auto operator<=>(const Quality&) const = default;
};

Quality quality(const std::vector<double>& costs, const std::vector<int>& cuts) {
  Quality q{0, 0};
  for (const double stage : stage_costs(costs, cuts)) {
    q.largest = std::max(q.largest, stage);
    q.squares += stage * stage;
  }
  return q;
}

// The best over every way to cut.
Quality brute_force(const std::vector<double>& costs, int stages) {
  Quality best;
  std::vector<int> cuts{0};
  const std::function<void()> extend = [&] {
    const int blocks = static_cast<int>(costs.size()),
              left = stages - static_cast<int>(cuts.size());
    if (left == 0) {
      cuts.push_back(blocks);
      best = std::min(best, quality(costs, cuts));
      cuts.pop_back();
      return;
    }
    for (int cut = cuts.back() + 1; cut <= blocks - left; ++cut) {
      cuts.push_back(cut);
      extend();
      cuts.pop_back();
    }
  };
  extend();
  return best;
}

TEST(PipelineBalance, IsAsGoodAsTheBestOfAllCuts) {
  const CounterRandom random(1, "costs");
  std::uint64_t drawn = 0;
  for (int blocks = 1; blocks <= 12; ++blocks) {
    for (int stages = 1; stages <= blocks; ++stages) {
      for (int repeat = 0; repeat < 5; ++repeat) {
        // Whole numbers: sums are exact, and ties and zeros are frequent.
        std::vector<double> costs(static_cast<std::size_t>(blocks));
        for (double& cost : costs) cost = std::floor(random.uniform(drawn++) * 9);
        const std::vector<int> cuts = balanced_cuts(costs, stages);
        ASSERT_EQ(cuts.size(), static_cast<std::size_t>(stages + 1));
        EXPECT_EQ(cuts.front(), 0);
        EXPECT_EQ(cuts.back(), blocks);
        EXPECT_TRUE(std::is_sorted(cuts.begin(), cuts.end(), std::less_equal<>()))
            << "a stage without blocks";
        EXPECT_EQ(quality(costs, cuts), brute_force(costs, stages))
            << blocks << " blocks, " << stages << " stages";
      }
    }
  }
}

TEST(PipelineBalance, ATowerAConnectorLayersAndAHead) {
  // Four tower blocks of 1, the connector, six layers of 3, the head.
  const std::vector<double> costs{1, 1, 1, 1, 2, 3, 3, 3, 3, 3, 3, 6};
  EXPECT_THAT(balanced_cuts(costs, 5), ElementsAre(0, 5, 7, 9, 11, 12));
  EXPECT_THAT(stage_costs(costs, balanced_cuts(costs, 5)), ElementsAre(6, 6, 6, 6, 6));
}

TEST(PipelineBalance, TheOtherStagesAreEvenToo) {
  // The first block fixes the largest stage; the rest could be cut 1, 5 or 3, 3.
  EXPECT_THAT(balanced_cuts(std::vector<double>{9, 1, 1, 1, 1, 1, 1}, 3), ElementsAre(0, 1, 4, 7));
}

TEST(PipelineBalance, RefusesWhatCannotBeCut) {
  const std::vector<double> costs{1, 2};
  EXPECT_THROW(balanced_cuts(costs, 3), Error);
  EXPECT_THROW(balanced_cuts(costs, 0), Error);
  EXPECT_THROW(balanced_cuts(std::vector<double>{1, -1}, 1), Error);
  EXPECT_THROW(balanced_cuts(std::vector<double>{1, std::numeric_limits<double>::quiet_NaN()}, 1),
               Error);
}

}  // namespace
}  // namespace orchard
