// A pipeline's step as a picture: one row a rank, time to the right.
#pragma once

#include <span>
#include <string>

#include "parallel/pipeline_simulation.h"

namespace orchard {

struct TimelinePanel {
  std::string title, note;  // plain text
  const PipelineSchedule* schedule = nullptr;
  const PipelineTimeline* timeline = nullptr;
};

// A whole SVG document that needs nothing else, light or dark as the reader's system asks; also fit
// to stand within a page. Panels lie below each other on one scale, so that they compare.
// Each rank's bubble and peak of saved activations are printed beside its row.
std::string timeline_svg(std::span<const TimelinePanel> panels);

// The same for a terminal, a line a rank: "F0 F1 ·  ·  B0". Lower case is chunk 1, "·" idle time,
// "-" the rest of a longer action. Empty where it would not fit `columns`, where times have no
// common unit or where there are more than two chunks.
std::string timeline_text(const PipelineSchedule& schedule, const PipelineTimeline& timeline,
                          int columns);

}  // namespace orchard
