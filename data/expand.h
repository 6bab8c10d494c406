// A sample's tokens as the rows of its document.
#pragma once

#include <vector>

#include "data/sample_layout.h"

namespace orchard {

struct SampleRows {
  std::vector<std::int32_t> sources{};  // >= 0 token id; < 0 visual row -1 - source
  std::vector<std::int32_t> targets{};  // id of the next row where that is a target, else -1
  std::int64_t target_count = 0;
};

// Rows and targets exactly as the layout planned them for `number`. The image tokens become the
// marks and visual rows of the pictures of `pictures_of` (the sample itself, or one on the same
// grids); visual rows are numbered from `first_visual_row`. Throws when the sample is not what the
// index says.
SampleRows expand_sample(const Sample& sample, std::int64_t number, std::int64_t pictures_of,
                         std::int64_t first_visual_row, const SampleLayout& layout);

}  // namespace orchard
