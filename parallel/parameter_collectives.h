// What ranks do together with the parameters that they share.
#pragma once

#include <span>
#include <vector>

#include "parallel/flat_shards.h"

namespace orchard {

// The global norm of gradients, the same on every rank of `world`. `counted` are the parts of this
// rank's flat buffer that no other rank counts (FlatShards::counted_once); `squares`, f32 with room
// for one each, is workspace. Waits for the stream.
double gradient_norm(Stream& stream, Communicator& world, ConstTensor flat_gradients,
                     std::span<const FlatRange> counted, Tensor squares);

// A whole parameter in host memory, on every rank, from its slices: `local` is f32 and this rank's,
// absent where it holds nothing. All ranks of a pipeline stage call it together.
std::vector<float> gather_whole(Stream& stream, const ParallelContext& ranks,
                                const ParameterSpec& spec, ConstTensor local);

}  // namespace orchard
