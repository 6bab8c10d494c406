#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "train/timeline.h"

namespace orchard {
namespace {

// The longest time of which all starts and ends are whole multiples: a fraction of the shortest
// action. 0 where there is none worth drawing.
double common_unit(const PipelineTimeline& timeline) {
  double shortest = timeline.makespan();
  for (const RankTimeline& rank : timeline.ranks) {
    for (const TimedAction& a : rank.actions) shortest = std::min(shortest, a.end - a.start);
  }
  const auto is_whole = [](double x) { return std::abs(x - std::round(x)) < 1e-6; };
  for (const int parts : {1, 2, 3, 4}) {
    const double unit = shortest / parts;
    const bool fits = unit > 0 && std::ranges::all_of(timeline.ranks, [&](const RankTimeline& r) {
                        return std::ranges::all_of(r.actions, [&](const TimedAction& a) {
                          return is_whole(a.start / unit) && is_whole(a.end / unit);
                        });
                      });
    if (fits) return unit;
  }
  return 0;
}

char letter_of(const PipelineAction& action) {
  constexpr char letters[2][4] = {{'F', 'B', 'W', 'B'}, {'f', 'b', 'w', 'b'}};
  return letters[action.chunk][static_cast<std::size_t>(action.op)];
}

}  // namespace

std::string timeline_text(const PipelineSchedule& schedule, const PipelineTimeline& timeline,
                          int columns) {
  const double unit = common_unit(timeline);
  if (unit == 0 || schedule.chunks > 2) return {};
  const int digits = schedule.micro_batches > 10 ? 2 : 1, cell = digits + 2;
  const auto units = [&](double time) { return static_cast<int>(std::lround(time / unit)); };
  if (7 + units(timeline.makespan()) * cell > columns) return {};
  std::string text;
  for (std::size_t rank = 0; rank < timeline.ranks.size(); ++rank) {
    text += fmt::format("rank {:<3}", rank);
    int now = 0;
    for (const TimedAction& a : timeline.ranks[rank].actions) {
      for (; now < units(a.start); ++now) text += fmt::format("{:<{}}", "·", cell);
      const std::string name = fmt::format("{}{}", letter_of(a.action), a.action.micro_batch);
      const int width = (units(a.end) - now) * cell;
      text += fmt::format("{:-<{}} ", width > cell ? name + " " : name, width - 1);
      now = units(a.end);
    }
    // Nobody needs blanks at the end of a line.
    text.erase(text.find_last_not_of(' ') + 1);
    text += '\n';
  }
  return text;
}

}  // namespace orchard
