// Functions of one float that several operations need.
#pragma once

#include "kernels/gpu/gpu.h"

namespace orchard::GPU_NAMESPACE {

// 1 / (1 + e^-x), within 5 units in the last place. Neither overflow of the exponential harms it: the
// quotient by infinity is 0.
__device__ inline float sigmoid(float x) {
  return __fdividef(1.0f, 1.0f + expf(-x));
}

}  // namespace orchard::GPU_NAMESPACE
