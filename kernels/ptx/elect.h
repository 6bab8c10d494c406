// elect.sync: true in one lane of the warp, the same one every time. From sm_90 on. Unlike lane == 0,
// the compiler sees that a single thread goes on.
#pragma once

#include "kernels/gpu/gpu.h"

namespace orchard::GPU_NAMESPACE {

#ifdef __CUDACC__

__device__ __forceinline__ bool elect_one() {
  unsigned elected;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "elect.sync _|p, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}"
      : "=r"(elected));
  return elected != 0;
}

#else

inline bool elect_one(Where where = Where::current()) {
  ElectArguments arguments{};
  warp_collective(elect_operation, 0xffffffffu, &arguments, where);
  return arguments.elected;
}

#endif

}  // namespace orchard::GPU_NAMESPACE
