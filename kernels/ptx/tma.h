// TMA: the copy engine of sm_90 moves a box of a tensor to shared memory, for one thread's asking.
//
// The box arrives with the 128-byte swizzle: its rows lie one after the other, and the 16-byte columns
// of each 128 bytes change places with the number of the 128-byte line, so that wgmma reads them
// without bank conflicts. Elements outside the tensor become zero. The destination is aligned to 1024
// bytes, where the pattern begins. A tensor map is a kernel parameter, `const __grid_constant__
// TensorMap`.
#pragma once

#include <cstdint>

#include "kernels/gpu/gpu.h"
#include "kernels/gpu/tensor_box.h"
#ifdef __CUDACC__
#include "kernels/cuda/tensor_map.h"
#else
#include "kernels/simt/tensor_map.h"
#endif

namespace orchard::GPU_NAMESPACE {

#ifdef __CUDACC__

// Starts the copy of the box whose first element is [matrix, row, col]; its bytes, all of the box's,
// count for `barrier`.
__device__ __forceinline__ void tma_load(void* shared, const TensorMap& map, int col, int row,
                                         int matrix, std::uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4}], [%5];" ::"r"(shared_address(shared)),
      "l"(&map), "r"(col), "r"(row), "r"(matrix), "r"(shared_address(barrier))
      : "memory");
}

// Brings the map near, before its first use.
__device__ __forceinline__ void tma_prefetch(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

#else

inline void tma_load(void* shared, const TensorMap& map, int col, int row, int matrix,
                     std::uint64_t* barrier, Where where = Where::current()) {
  issue_tensor_load({map.box, shared, col, row, matrix, barrier}, where);
}

inline void tma_prefetch(const TensorMap&) {}

#endif

}  // namespace orchard::GPU_NAMESPACE
