// Reductions over the lanes of a warp.
#pragma once

#include "kernels/gpu/gpu.h"

namespace orchard::GPU_NAMESPACE {

constexpr unsigned all_lanes = 0xffffffffu;

// The sum over the 32 lanes, in every lane. Butterfly: the same shape of sum, so the same bits,
// everywhere.
__device__ inline float warp_sum(float value) {
  for (int distance = 16; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(all_lanes, value, distance);
  }
  return value;
}

}  // namespace orchard::GPU_NAMESPACE
