// Reductions over the lanes of a warp.
#pragma once

#include "kernels/gpu/gpu.h"

namespace orchard::GPU_NAMESPACE {

constexpr unsigned all_lanes = 0xffffffffu;

// The sum over the lanes of each section of `lanes` (a power of two), in every lane. Butterfly: the
// same shape of sum, so the same bits, everywhere.
template <class T>
__device__ T warp_sum(T value, int lanes = 32) {
  for (int distance = lanes / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(all_lanes, value, distance);
  }
  return value;
}

}  // namespace orchard::GPU_NAMESPACE
