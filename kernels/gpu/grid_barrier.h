// A barrier of all blocks of a launch that asked for Residency::whole_grid. After it, every thread sees
// what all others wrote to global memory before it.
#pragma once

#include "kernels/gpu/gpu.h"
#ifdef __CUDACC__
#include <cooperative_groups.h>
#endif

namespace orchard::GPU_NAMESPACE {

#ifdef __CUDACC__
__device__ __forceinline__ void grid_sync() {
  cooperative_groups::this_grid().sync();
}
#else
inline void grid_sync(Where where = Where::current()) {
  grid_barrier(where);
}
#endif

}  // namespace orchard::GPU_NAMESPACE
