// How large a model is, from its declarations alone: nothing is allocated.
#pragma once

#include "models/config.h"

namespace orchard {

struct ParameterCounts {
  std::int64_t vision = 0;
  std::int64_t connector = 0;
  std::int64_t embedding = 0;
  std::int64_t decoder = 0;   // without the embedding, with all experts
  std::int64_t inactive = 0;  // of the decoder: the experts that a token does not choose

  std::int64_t total() const { return vision + connector + embedding + decoder; }
  std::int64_t active() const { return total() - inactive; }
};

ParameterCounts count_parameters(const ModelConfig& model);

}  // namespace orchard
