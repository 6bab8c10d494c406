// A pipeline's step as a picture: one row a rank, time to the right.
#pragma once

#include <string>

#include "parallel/pipeline_simulation.h"

namespace orchard {

struct TimelineFigure {
  std::string title, note;  // plain text
  double width = 1120;      // pixels
};

// A whole SVG document that needs nothing else, light or dark as the reader's system asks; also fit
// to stand within a page. Each rank's bubble and peak of saved activations are printed beside its
// row.
std::string timeline_svg(const PipelineSchedule& schedule, const PipelineTimeline& timeline,
                         const TimelineFigure& figure);

// The same for a terminal, a line a rank: "F0 F1 ·  ·  B0". Lower case is chunk 1, "·" idle time,
// "-" the rest of a longer action. Empty where it would not fit `columns`, where times have no
// common unit or where there are more than two chunks.
std::string timeline_text(const PipelineSchedule& schedule, const PipelineTimeline& timeline,
                          int columns);

}  // namespace orchard
