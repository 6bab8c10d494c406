// The sequences that measure a model: each held-out sample once, in the order of the index, and the
// same sequences again with pictures swapped between samples.
#pragma once

#include <limits>
#include <vector>

#include "data/packing.h"

namespace orchard {

struct HeldOutOptions {
  // Of each category of the index, evenly spaced over its held-out samples.
  std::int64_t limit_per_category = std::numeric_limits<std::int64_t>::max();
  // Numbers of the index's categories to take; empty: all.
  std::vector<std::int32_t> categories{};
};

// Two samples of one category with as many pictures on the same grids: `sample` may show the
// pictures of `pictures_of` without a change in rows, marks or targets.
struct PicturePair {
  std::int64_t sample = 0;
  std::int64_t pictures_of = 0;
};

struct HeldOutPlan {
  std::vector<PackedSequence> sequences{};
  // The samples that have a partner, ascending, each with another sample; each of them also lends
  // its own pictures once. A comparison is taken over these alone.
  std::vector<PicturePair> pairs{};
  std::int64_t samples = 0;   // packed
  std::int64_t unpaired = 0;  // of these, with pictures but without a partner
  std::int64_t skipped = 0;   // cannot be packed

  // `sequences`, with each paired sample showing its partner's pictures.
  std::vector<PackedSequence> swapped() const;
};

HeldOutPlan plan_held_out(const SampleLayout& layout, const HeldOutOptions& options = {});

}  // namespace orchard
