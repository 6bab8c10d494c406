// stmatrix: a warp stores 1, 2 or 4 matrices of 8 x 8 16-bit elements, in the register layout of mma's
// results, to shared memory: the inverse of ldmatrix. From sm_90 on.
//
// Row r of matrix i goes to the 16 bytes, aligned to 16, at the address that lane 8·i + r brings.
// Register i of lane l holds of matrix i the elements [l / 4][2·(l % 4)] (lower half) and
// [l / 4][2·(l % 4) + 1]; of the transposed matrix with stmatrix_trans. All 32 lanes must execute it
// together.
#pragma once

#include "kernels/gpu/gpu.h"
#ifndef __CUDACC__
#include "kernels/simt/matrix_operations.h"
#endif

namespace orchard::GPU_NAMESPACE {

#ifdef __CUDACC__

__device__ __forceinline__ void stmatrix(void* row, const unsigned (&r)[1]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x1.shared.b16 [%0], {%1};" ::"r"(shared_address(row)),
               "r"(r[0])
               : "memory");
}

__device__ __forceinline__ void stmatrix(void* row, const unsigned (&r)[2]) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1, %2};" ::"r"(shared_address(row)),
      "r"(r[0]), "r"(r[1])
      : "memory");
}

__device__ __forceinline__ void stmatrix(void* row, const unsigned (&r)[4]) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)),
      "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
      : "memory");
}

__device__ __forceinline__ void stmatrix_trans(void* row, const unsigned (&r)[1]) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%0], {%1};" ::"r"(shared_address(row)),
      "r"(r[0])
      : "memory");
}

__device__ __forceinline__ void stmatrix_trans(void* row, const unsigned (&r)[2]) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(shared_address(row)),
      "r"(r[0]), "r"(r[1])
      : "memory");
}

__device__ __forceinline__ void stmatrix_trans(void* row, const unsigned (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                   shared_address(row)),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}

#else

template <int matrices>
void stmatrix(void* row, const unsigned (&r)[matrices], Where where = Where::current()) {
  if (lane_index() < 8 * matrices) shared_access(row, 16, Access::write, where);
  StoreMatrixArguments arguments{r, row};
  warp_collective(store_matrix_operation(matrices, false), 0xffffffffu, &arguments, where);
}

template <int matrices>
void stmatrix_trans(void* row, const unsigned (&r)[matrices], Where where = Where::current()) {
  if (lane_index() < 8 * matrices) shared_access(row, 16, Access::write, where);
  StoreMatrixArguments arguments{r, row};
  warp_collective(store_matrix_operation(matrices, true), 0xffffffffu, &arguments, where);
}

#endif

}  // namespace orchard::GPU_NAMESPACE
