// bar: the sixteen barriers of a block, each for some of its warps. __syncthreads is number 0 for all.
//
// A barrier opens when `threads` threads (whole warps: a multiple of 32) have come to it, waiting or
// not; all give the same number. Those that wait see what all others wrote before they came. A thread
// that has arrived must not use the barrier again before it has opened.
#pragma once

#include "kernels/gpu/gpu.h"

namespace orchard::GPU_NAMESPACE {

#ifdef __CUDACC__

__device__ __forceinline__ void bar_sync(unsigned number, unsigned threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

// Comes without waiting.
__device__ __forceinline__ void bar_arrive(unsigned number, unsigned threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

#else

inline void bar_sync(unsigned number, unsigned threads, Where where = Where::current()) {
  barrier_sync({number, threads}, where);
}

inline void bar_arrive(unsigned number, unsigned threads, Where where = Where::current()) {
  barrier_arrive({number, threads}, where);
}

#endif

}  // namespace orchard::GPU_NAMESPACE
