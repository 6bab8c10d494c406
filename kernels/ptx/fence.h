// fence.proxy.async: between what a thread has written to shared memory by ordinary stores or cp.async,
// and the barrier after which wgmma or the copy engine read or overwrite it. From sm_90 on.
#pragma once

#include "kernels/gpu/gpu.h"

namespace orchard::GPU_NAMESPACE {

#ifdef __CUDACC__
__device__ __forceinline__ void fence_proxy_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
#else
inline void fence_proxy_async() {
  fence_proxy();
}
#endif

}  // namespace orchard::GPU_NAMESPACE
