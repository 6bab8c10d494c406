// What a rank holds of a global tensor, and how the whole comes together in a file and apart again.
#pragma once

#include <span>
#include <vector>

#include "comm/communicator.h"
#include "kernels/core/tensor.h"
#include "parallel/parameter.h"
#include "parallel/slice.h"

namespace orchard {

// Rows [begin, begin + count), indices of the first dimension, of a slice of a tensor. Nothing where
// count is 0.
struct TensorShard {
  Shape shape;  // of the whole
  Slice slice;
  std::int64_t begin = 0, count = 0;
};

// The rows of a parameter that this rank updates.
TensorShard owned_shard(const Parameter& parameter);

// The shard's elements of the whole, in order.
std::vector<float> cut(const TensorShard& shard, std::span<const float> whole);

enum class Counted : std::uint8_t { no, yes };

// The whole tensor in host memory on the first rank of the group, empty on the others, from the
// shards of those that are counted: together they must hold each element once. `local` is f32, the
// elements of this rank's shard. All ranks call it together, with equal shapes.
std::vector<float> gather_to_first(Stream& stream, Communicator& group, const TensorShard& shard,
                                   ConstTensor local, Counted counted);

}  // namespace orchard
