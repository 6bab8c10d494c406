// How much of a micro-batch the links of the model's chain keep for backward, in values of the
// model's dtype: what decides, with the schedule, how much memory a pipeline needs. Counted from
// what the layers allocate (models/*.cpp), on one rank; statistics of rows are left out.
#pragma once

#include <vector>

#include "models/flops.h"

namespace orchard {

struct SavedValues {
  double forward = 0;   // from forward to the input half
  double backward = 0;  // from the input half, in which gradients join it, to the weight half
  // `forward` of a model that recomputes nothing.
  double without_recompute = 0;
};

// Of each link, in order: link_count(model) of them.
std::vector<SavedValues> count_saved_values(const ModelConfig& model, const Workload& work);

}  // namespace orchard
