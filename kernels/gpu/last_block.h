// "The last block goes on": blocks leave something in global memory, and the one that comes last works on
// with what all have left, in the same launch.
#pragma once

#include "kernels/gpu/gpu.h"

namespace orchard::GPU_NAMESPACE {

// Whether the calling block is the last of `blocks` to come; it then sees what the others wrote to global
// memory before they came. All threads of each block call. `arrived` is zero before the first comes, and
// again after the last (kernels/device/zero_words.h); `before` is shared memory.
__device__ inline bool is_last_block(unsigned* arrived, unsigned blocks, unsigned& before) {
  __syncthreads();  // all of the block have written
  if (threadIdx.x == 0) {
    __threadfence();
    before = atomicAdd(arrived, 1u);
    __threadfence();
    if (before == blocks - 1) atomicAdd(arrived, 0u - blocks);
  }
  __syncthreads();
  return before == blocks - 1;
}

}  // namespace orchard::GPU_NAMESPACE
