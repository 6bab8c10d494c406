#include "train/schedule.h"

#include <gtest/gtest.h>

#include <cmath>

namespace orchard::testing {
namespace {

// Of the last of three digits, to which the published values are rounded.
double half_unit(double value) {
  return 0.005 * std::pow(10, std::floor(std::log10(value)));
}

TEST(LearningRateLaw, GivesThePublishedValues) {
  const std::pair<double, double> table[] = {{9e6, 6.75e-4},   {85e6, 2.62e-4},  {302e6, 1.54e-4},
                                             {1.2e9, 8.58e-5}, {2.9e9, 5.92e-5}, {3e9, 5.83e-5},
                                             {6.4e9, 4.24e-5}, {7e9, 4.08e-5},   {30e9, 2.21e-5}};
  for (const auto& [parameters, rate] : table)
    EXPECT_NEAR(learning_rate_law(parameters), rate, half_unit(rate)) << parameters;
}

TEST(Schedule, WarmsUpInAStraightLine) {
  const Schedule schedule{.peak = 8, .warmup = 4, .steps = 20};
  EXPECT_DOUBLE_EQ(schedule.at(1), 2);
  EXPECT_DOUBLE_EQ(schedule.at(2), 4);
  EXPECT_DOUBLE_EQ(schedule.at(3), 6);
  EXPECT_DOUBLE_EQ(schedule.at(4), 8);
  EXPECT_LT(schedule.at(5), 8);
}

TEST(Schedule, FallsAsACosineToItsEnd) {
  const Schedule to_zero{.peak = 8, .warmup = 4, .steps = 20};
  EXPECT_NEAR(to_zero.at(12), 4, 1e-12);  // half way
  EXPECT_NEAR(to_zero.at(8), 4 * (1 + std::sqrt(0.5)), 1e-12);
  EXPECT_NEAR(to_zero.at(20), 0, 1e-12);
  const Schedule to_a_tenth{.peak = 8, .warmup = 4, .steps = 20, .final_fraction = 0.1};
  EXPECT_NEAR(to_a_tenth.at(12), 8 * 0.55, 1e-12);
  EXPECT_NEAR(to_a_tenth.at(20), 0.8, 1e-12);
  for (std::int64_t step = 5; step <= 20; ++step)
    EXPECT_LT(to_a_tenth.at(step), to_a_tenth.at(step - 1)) << step;
}

TEST(Schedule, StaysInBoundsAtTheEdges) {
  const Schedule no_warmup{.peak = 8, .warmup = 0, .steps = 10};
  EXPECT_GT(no_warmup.at(1), 7.5);
  EXPECT_NEAR(no_warmup.at(10), 0, 1e-12);
  const Schedule only_warmup{.peak = 8, .warmup = 10, .steps = 10, .final_fraction = 0.1};
  EXPECT_DOUBLE_EQ(only_warmup.at(5), 4);
  EXPECT_DOUBLE_EQ(only_warmup.at(10), 8);
  const Schedule past_its_end{.peak = 8, .warmup = 2, .steps = 4, .final_fraction = 0.5};
  EXPECT_NEAR(past_its_end.at(9), 4, 1e-12);
}

}  // namespace
}  // namespace orchard::testing
