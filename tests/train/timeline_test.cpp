#include "train/timeline.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace orchard {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

struct Simulated {
  PipelineSchedule schedule;
  PipelineTimeline timeline;
};

Simulated run(const ScheduleShape& shape, const StageCost& cost = {}) {
  const PipelineSchedule schedule = make_schedule(shape);
  return {schedule, simulate(schedule, PipelineCosts::even(schedule, cost))};
}

constexpr ScheduleShape one_f_one_b{.ranks = 2, .chunks = 1, .micro_batches = 2};
constexpr ScheduleShape vee{
    .kind = ScheduleKind::zero_bubble_v, .ranks = 2, .chunks = 2, .micro_batches = 3};

std::string text_of(const Simulated& r, int columns = 200) {
  return timeline_text(r.schedule, r.timeline, columns);
}

std::string svg_of(const Simulated& r, const std::string& title) {
  const TimelinePanel panel{.title = title, .schedule = &r.schedule, .timeline = &r.timeline};
  return timeline_svg({&panel, 1});
}

std::size_t count(const std::string& text, const std::string& part) {
  std::size_t n = 0;
  for (std::size_t at = text.find(part); at != text.npos; at = text.find(part, at + 1)) ++n;
  return n;
}

TEST(TimelineText, ShowsEachActionInItsColumn) {
  EXPECT_EQ(text_of(run(one_f_one_b)),
            "rank 0  F0 F1 ·  ·  B0 -- ·  B1 --\n"
            "rank 1  ·  F0 B0 -- F1 B1 --\n");
  EXPECT_EQ(text_of(run(vee)),
            "rank 0  F0 F1 F2 f0 b0 w0 f1 b1 w1 B0 W0 f2 b2 w2 B1 W1 B2 W2\n"
            "rank 1  ·  F0 f0 F1 f1 b0 w0 F2 B0 W0 f2 b1 w1 B1 b2 B2 W1 w2 W2\n");
}

TEST(TimelineText, IsEmptyWhereItWouldMislead) {
  EXPECT_EQ(text_of(run(one_f_one_b), 30), "") << "lines would wrap";
  EXPECT_EQ(text_of(run(one_f_one_b, {.forward = 1, .backward_input = 1.37})), "")
      << "columns would not be times";
  EXPECT_EQ(text_of(run(
                {.kind = ScheduleKind::interleaved, .ranks = 2, .chunks = 3, .micro_batches = 2})),
            "")
      << "there are two cases of letters";
}

TEST(TimelineSvg, DrawsEveryActionAndEveryBubble) {
  const Simulated r =
      run(one_f_one_b, {.forward = 40, .backward_input = 40, .backward_weight = 40});
  const std::string svg = svg_of(r, "a <title> & more");
  EXPECT_THAT(svg, HasSubstr("a &lt;title&gt; &amp; more"));
  EXPECT_EQ(count(svg, ">rank "), 2u);
  // Numbers of two forwards and two backwards a rank, all wide enough to carry them.
  EXPECT_EQ(count(svg, "class=\"tl-dark\""), 8u);
  EXPECT_THAT(svg, HasSubstr(">backward<"));
  EXPECT_THAT(svg, Not(HasSubstr("weight half")));
  // Rank 0 idles twice, rank 1 not at all.
  const auto bubbles = [&](std::size_t at) {
    const std::size_t from = svg.find("class=\"tl-bubble\" d=\"", at);
    return svg.substr(from, svg.find("/>", from) - from);
  };
  const std::size_t rows = svg.find("class=\"tl-bubble\" d=\"");
  EXPECT_EQ(count(bubbles(rows), "M"), 2u);
  EXPECT_EQ(count(bubbles(rows + 1), "M"), 0u);
}

TEST(TimelineSvg, PanelsShareOneScaleOfTime) {
  const Simulated short_run = run(one_f_one_b), long_run = run(one_f_one_b, {.forward = 10});
  const TimelinePanel panels[] = {
      {.title = "short", .schedule = &short_run.schedule, .timeline = &short_run.timeline},
      {.title = "long", .schedule = &long_run.schedule, .timeline = &long_run.timeline}};
  // The idle backs of rows are as wide as the steps are long, 840 pixels the longer.
  const std::string svg = timeline_svg(panels);
  const double width = 840 * short_run.timeline.makespan() / long_run.timeline.makespan();
  EXPECT_EQ(count(svg, fmt::format("width=\"{:.2f}\"", width)), 2u);
  EXPECT_EQ(count(svg, "width=\"840.00\""), 2u);
  EXPECT_EQ(count(svg, "<style>"), 1u);
}

TEST(TimelineSvg, StaysSmallAndLegibleForManyRanks) {
  const Simulated r =
      run({.kind = ScheduleKind::zero_bubble_v, .ranks = 16, .chunks = 2, .micro_batches = 64});
  const std::string svg = svg_of(r, "large");
  EXPECT_LT(svg.size(), 400'000u);
  EXPECT_EQ(count(svg, "class=\"tl-dark\""), 0u) << "numbers wider than their cells";
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
}

}  // namespace
}  // namespace orchard
