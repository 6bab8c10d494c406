// One micro-batch through the stages of a pipeline, one after the other: for losses and answers.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "models/multimodal.h"

namespace orchard {

// Runs links on what the link before them has handed on, see Chain::forward.
using ForwardLinks = std::function<ConstTensor(LinkRange, ConstTensor x)>;

// All ranks of the pipeline call it together, with the same micro-batch; `forward` is called for each
// of this rank's stages in turn, once for the whole chain where there is no pipeline. Returns what
// the last of them returned.
ConstTensor pass_through_stages(Pass& pass, const MultimodalModel& model,
                                const ForwardLinks& forward);

// Likewise; returns what each of this rank's chunks has saved, in order.
std::vector<MultimodalModel::Saved> forward_through_stages(Pass& pass,
                                                           const MultimodalModel& model);

// The same f32 tensor on all stages: `own` of the last one, absent on the others.
ConstTensor from_last_stage(Pass& pass, ConstTensor own, const Shape& shape);

}  // namespace orchard
