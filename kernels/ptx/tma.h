// TMA: the copy engine of sm_90 moves a box of a tensor to shared memory or from it, for one thread's
// asking.
//
// The box arrives with its rows one after the other and swizzled as its TensorBox says, so that wgmma
// reads it without bank conflicts. Elements outside the tensor become zero. The destination is aligned
// to 128 bytes; where the pattern of the swizzle shall begin with the box, to 8 lines of it (1024 bytes
// with the 128-byte swizzle). A tensor map is a kernel parameter, `const __grid_constant__ TensorMap`.
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

// The same to the same place of every block of the cluster whose rank's bit is set in `ranks`; in each
// the bytes count for its own `barrier`.
__device__ __forceinline__ void tma_load_multicast(void* shared, const TensorMap& map, int col,
                                                   int row, int matrix, std::uint64_t* barrier,
                                                   unsigned ranks) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(shared_address(shared)),
      "l"(&map), "r"(col), "r"(row), "r"(matrix), "r"(shared_address(barrier)),
      "h"(static_cast<unsigned short>(ranks))
      : "memory");
}

// Copies a box from shared memory, swizzled as tma_load leaves it; elements outside the tensor are left
// out. bulk_copy.h says how to wait for it.
__device__ __forceinline__ void tma_store(const TensorMap& map, const void* shared, int col,
                                          int row, int matrix) {
  asm volatile(
      "cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%1, %2, %3}], "
      "[%4];" ::"l"(&map),
      "r"(col), "r"(row), "r"(matrix), "r"(shared_address(shared))
      : "memory");
}

// Adds the box to what the tensor holds, each element by itself and rounded to the tensor's type.
__device__ __forceinline__ void tma_add(const TensorMap& map, const void* shared, int col, int row,
                                        int matrix) {
  asm volatile(
      "cp.reduce.async.bulk.tensor.3d.global.shared::cta.add.tile.bulk_group "
      "[%0, {%1, %2, %3}], [%4];" ::"l"(&map),
      "r"(col), "r"(row), "r"(matrix), "r"(shared_address(shared))
      : "memory");
}

// Brings a box near, into the L2: what tma_add or tma_load will soon ask for.
__device__ __forceinline__ void tma_prefetch_box(const TensorMap& map, int col, int row,
                                                 int matrix) {
  asm volatile("cp.async.bulk.prefetch.tensor.3d.L2.global.tile [%0, {%1, %2, %3}];" ::"l"(&map),
               "r"(col), "r"(row), "r"(matrix)
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

inline void tma_load_multicast(void* shared, const TensorMap& map, int col, int row, int matrix,
                               std::uint64_t* barrier, unsigned ranks,
                               Where where = Where::current()) {
  issue_tensor_load({map.box, shared, col, row, matrix, barrier, ranks}, where);
}

inline void tma_store(const TensorMap& map, const void* shared, int col, int row, int matrix,
                      Where where = Where::current()) {
  issue_tensor_store({map.box, shared, col, row, matrix, Combine::replace}, where);
}

inline void tma_add(const TensorMap& map, const void* shared, int col, int row, int matrix,
                    Where where = Where::current()) {
  issue_tensor_store({map.box, shared, col, row, matrix, Combine::add}, where);
}

inline void tma_prefetch_box(const TensorMap&, int, int, int) {}

inline void tma_prefetch(const TensorMap&) {}

#endif

}  // namespace orchard::GPU_NAMESPACE
