// The sum that reductions among ranks end in, where a device adds it up.
#pragma once

#include "kernels/core/tensor.h"

namespace orchard {

class Stream;

// result[i] = part 0 [i] + part 1 [i] + ..., the parts of the ranks of a group: in fp32, in this order,
// rounded once to the type of the parts. f32 or bf16. Bytes (ranks + 1)·n elements; bound by memory.
struct RankSum {
  ConstTensor parts;  // [ranks, stride], stride >= n; the row of own_rank is not read
  ConstTensor own;    // [n]: the part of own_rank
  int own_rank = 0;
  Tensor result;  // [n]; may be `own`
};

void run(Stream&, const RankSum&);

}  // namespace orchard
