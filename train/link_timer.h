// How long the links of a model's chain take on this machine.
#pragma once

#include "data/batch.h"
#include "parallel/expert_dispatcher.h"
#include "train/link_costs.h"

namespace orchard {

// What of a run decides how long a link takes, beside the model and the micro-batch.
struct LinkSetting {
  Layout layout;  // its pipeline size does not matter
  SequenceParallel sequence_parallel = SequenceParallel::yes;
  ExpertDispatchOptions experts;
  DType dtype = DType::f32;
};

// Seconds of a forward and a backward of one link of each kind that the micro-batch passes: the
// fastest of a few repetitions, on the slowest rank. All ranks of `world` call it together and get
// the same. They share each link as the setting's layout has it, so that what tensor and expert
// ranks say to each other is timed, too; nothing but a link of each kind is ever in memory. Pictures
// are grey: of the micro-batch only the counts matter, and its patches may be absent.
CostByKind time_links(Device& device, Communicator& world, const ModelConfig& model,
                      const LinkSetting& setting, MicroBatch batch);

}  // namespace orchard
