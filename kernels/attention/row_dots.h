// D = rowsum(d_out ∘ out), what backward subtracts from the gradient of the probabilities.
#pragma once

#include "kernels/attention/attention.h"
#include "kernels/gpu/gpu.h"

namespace orchard::GPU_NAMESPACE {

// Queues the computation of D, f32 [query_tokens, heads], into the stream's workspace.
const float* row_dots(Stream&, const AttentionBackward&);

}  // namespace orchard::GPU_NAMESPACE
