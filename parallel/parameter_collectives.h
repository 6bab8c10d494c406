// What ranks do together with the parameters that they share.
#pragma once

#include <vector>

#include "parallel/parallel_context.h"
#include "parallel/parameter.h"

namespace orchard {

// A whole parameter in host memory, on every rank, from its slices: `local` is f32 and this rank's,
// absent where it holds nothing. All ranks of a pipeline stage call it together.
std::vector<float> gather_whole(Stream& stream, const ParallelContext& ranks,
                                const ParameterSpec& spec, ConstTensor local);

}  // namespace orchard
