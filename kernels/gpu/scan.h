// Prefix sums over a warp and over a block.
#pragma once

#include "kernels/gpu/gpu.h"
#include "kernels/gpu/warp.h"

namespace orchard::GPU_NAMESPACE {

// The sum over this lane and those below it.
__device__ inline int warp_inclusive_sum(int value) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const int below = __shfl_up_sync(all_lanes, value, distance);
    if (lane >= distance) value += below;
  }
  return value;
}

template <int threads>
struct BlockSums {
  int warp[threads / 32];
};

// The sum over the threads below this one; `total` receives that over all. `sums` is shared memory
// that nothing else uses until the next barrier.
template <int threads>
__device__ int block_exclusive_sum(int value, BlockSums<threads>& sums, int& total) {
  const int thread = static_cast<int>(threadIdx.x), own_warp = thread / 32;
  const int inclusive = warp_inclusive_sum(value);
  if (thread % 32 == 31) sums.warp[own_warp] = inclusive;
  __syncthreads();
  int below = inclusive - value;
  total = 0;
  for (int warp = 0; warp < threads / 32; ++warp) {
    if (warp < own_warp) below += sums.warp[warp];
    total += sums.warp[warp];
  }
  return below;
}

}  // namespace orchard::GPU_NAMESPACE
