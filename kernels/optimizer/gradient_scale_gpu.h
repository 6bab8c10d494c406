// What gradients are multiplied by, as kernels read it: a number that each warp asks a cache for.
#pragma once

#include "kernels/gpu/gpu.h"

namespace orchard::GPU_NAMESPACE {

__device__ inline float load_scale(const float* scale) {
  return scale == nullptr ? 1.0f : load(scale);
}

// Whether the gradients are to be used: the scale is finite.
__device__ inline bool is_usable(float scale) {
  return scale - scale == 0;
}

}  // namespace orchard::GPU_NAMESPACE
