#include "parallel/pipeline_stages.h"

#include <algorithm>

#include "kernels/core/error.h"

namespace orchard {

PipelineStages::PipelineStages(ScheduleKind kind, int ranks, int chunks, std::vector<int> cuts)
    : kind_(kind),
      map_(make_schedule({.kind = kind, .ranks = ranks, .chunks = chunks})),
      cuts_(std::move(cuts)) {
  map_.actions.clear();
  require(std::ssize(cuts_) == count() + 1 && cuts_.front() == 0,
          "{} stages of {} ranks with {} chunks need as many first blocks and the end, not {}",
          count(), ranks, chunks, cuts_.size());
  for (int stage = 0; stage < count(); ++stage) {
    const LinkRange range = links(stage);
    require(range.first < range.last, "stage {} has no block: it would begin at {} and end at {}",
            stage, range.first, range.last);
  }
}

LinkRange PipelineStages::links(int stage) const {
  const auto s = static_cast<std::size_t>(stage);
  return {cuts_[s], cuts_[s + 1]};
}

std::vector<LinkRange> PipelineStages::links_of_rank(int rank) const {
  std::vector<LinkRange> ranges;
  if (cuts_.empty()) return ranges;
  for (int chunk = 0; chunk < chunks(); ++chunk) ranges.push_back(links(stage_at(rank, chunk)));
  return ranges;
}

int PipelineStages::rank_of(int link) const {
  if (cuts_.empty()) return 0;
  require(link >= 0 && link < cuts_.back(), "link {} of {}: there is none", link, cuts_.back());
  const auto after = std::upper_bound(cuts_.begin(), cuts_.end(), link);
  return place_of(static_cast<int>(after - cuts_.begin()) - 1).rank;
}

PipelineSchedule PipelineStages::schedule(int micro_batches) const {
  return make_schedule(
      {.kind = kind_, .ranks = ranks(), .chunks = chunks(), .micro_batches = micro_batches});
}

std::string PipelineStages::to_string() const {
  std::string text;
  for (int stage = 0; stage < count() && !cuts_.empty(); ++stage) {
    const LinkRange range = links(stage);
    text += fmt::format("{}{}-{}", stage == 0 ? ", blocks " : " | ", range.first, range.last - 1);
  }
  return std::string(name_of(kind_)) + text;
}

}  // namespace orchard
