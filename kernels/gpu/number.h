// Numbers that a kernel finds in memory when it runs.
#pragma once

#include "kernels/gpu/gpu.h"

namespace orchard::GPU_NAMESPACE {

// One that nothing writes while the kernel runs, or what a kernel without it takes.
__device__ inline float number_or(const float* address, float absent) {
  return address == nullptr ? absent : load_readonly(address);
}

}  // namespace orchard::GPU_NAMESPACE
