// What ranks do together with the parameters that they share.
#pragma once

#include <vector>

#include "parallel/parallel_context.h"
#include "parallel/parameter.h"

namespace orchard {

// Gradients of which replicas have a part each become the whole on all of them: once a step, after
// the last micro-batch and before the sum over data ranks.
void sum_over_replicas(Stream& stream, const ParallelContext& ranks, ParameterStore& store);

// The sum over data ranks, of experts over expert-data ranks, of everything at once.
void sum_over_data(Stream& stream, const ParallelContext& ranks, ParameterStore& store);

// The global norm of the gradients that these sums leave, each element counted once: the same on
// every rank. `squares`, f32 [segments of the store], is its workspace. Waits for the stream.
double gradient_norm(Stream& stream, const ParallelContext& ranks, const ParameterStore& store,
                     Tensor squares);

// A whole parameter in host memory, on every rank, from its slices: `local` is f32 and this rank's,
// absent where it holds nothing. All ranks of a pipeline stage call it together.
std::vector<float> gather_whole(Stream& stream, const ParallelContext& ranks,
                                const ParameterSpec& spec, ConstTensor local);

}  // namespace orchard
