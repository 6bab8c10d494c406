// cvt.rn.bf16x2.f32: two floats rounded to bf16 (to nearest even), `low` in the lower half of a register.
// (CUDA's name for it, __floats2bfloat162_rn, comes with 200 KB of headers, for every kernel's file to read.)
#pragma once

#include "kernels/gpu/gpu.h"

namespace orchard::GPU_NAMESPACE {

#ifdef __CUDACC__
__device__ __forceinline__ unsigned pack_bf16x2(float low, float high) {
  unsigned packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
#else
inline unsigned pack_bf16x2(float low, float high) {
  return to_bf16(low).bits | static_cast<unsigned>(to_bf16(high).bits) << 16;
}
#endif

}  // namespace orchard::GPU_NAMESPACE
