// Pictures in a pipeline: whoever has its first stage decodes them and copies them to its device; the
// other stages have no more than their counts, and hear from it which were bad.
#pragma once

#include <span>

#include "data/batch.h"
#include "data/sample.h"
#include "parallel/parallel_context.h"

namespace orchard {

// What this rank's micro-batches must have of their pictures.
PictureContent picture_content(const ParallelContext& ranks);

// What one stage found bad loses its targets on all of them. All ranks of a pipeline call it together
// with the same micro-batches; without a pipeline, or without pictures, nobody says anything.
void share_bad_documents(const ParallelContext& ranks, std::span<MicroBatch> micro_batches);

}  // namespace orchard
