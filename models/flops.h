// FLOPs of the model's matrix products, counted the way benchmarks quote them: multiply and add are
// two.
#pragma once

#include <vector>

#include "models/config.h"

namespace orchard {

struct FlopCounts {
  double forward = 0;
  double training =
      0;  // forward + backward: three times the products with weights, 2.5 + 1 times attention
  double weight_half = 0;  // of backward: the weights' gradients
};

// Of packed sequences: `tokens` rows in documents of `document_length` tokens, `targets` rows
// through the head, `tiles` picture tiles. Causal attention counts the half that is needed;
// recomputation counts nothing extra.
struct Workload {
  std::int64_t tokens = 0;
  double document_length = 0;
  std::int64_t targets = 0;
  std::int64_t tiles = 0;
};

FlopCounts count_flops(const ModelConfig& model, const Workload& work);

// Of each link of the chain that MultimodalModel is, in order: link_count(model) of them.
std::vector<FlopCounts> count_link_flops(const ModelConfig& model, const Workload& work);

}  // namespace orchard
