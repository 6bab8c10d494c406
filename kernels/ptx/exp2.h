// 2^x by the special function unit: one instruction, a relative error of 2^-22, exactly 1 at 0, and
// 0 below -126 (a denormal result is flushed). CUDA's exp2f keeps denormals at the price of three
// more instructions.
#pragma once

#include "kernels/gpu/gpu.h"

namespace orchard::GPU_NAMESPACE {

#ifdef __CUDACC__
__device__ __forceinline__ float fast_exp2(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
#else
inline float fast_exp2(float x) {
  return x < -126.0f ? 0.0f : std::exp2(x);
}
#endif

}  // namespace orchard::GPU_NAMESPACE
