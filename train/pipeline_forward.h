// One micro-batch through the stages of a pipeline, one after the other: for losses alone.
#pragma once

#include <span>
#include <vector>

#include "models/multimodal.h"

namespace orchard {

// All ranks of the pipeline call it together, with the same micro-batch; each runs its own links,
// all of them where there is no pipeline. Returns what each of its chunks has saved, in order.
std::vector<MultimodalModel::Saved> forward_through_stages(Pass& pass,
                                                           const MultimodalModel& model);

// f32 [padded targets], as MultimodalModel::losses: the stage with the head tells the others.
ConstTensor losses_on_every_stage(Pass& pass, const MultimodalModel& model,
                                  std::span<const MultimodalModel::Saved> saved);

}  // namespace orchard
