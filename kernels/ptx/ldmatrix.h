// ldmatrix: a warp loads 1, 2 or 4 matrices of 8 x 8 16-bit elements from shared memory into the
// register layout that mma takes. From sm_75 on.
//
// Row r of matrix i is the 16 bytes, aligned to 16, at the address that lane 8·i + r brings; other
// lanes' addresses do not matter. Register i of lane l then holds, of matrix i, the elements
// [l / 4][2·(l % 4)] (lower half) and [l / 4][2·(l % 4) + 1]; of the transposed matrix with
// ldmatrix_trans. A matrix takes one wavefront where its rows lie in different 16-byte columns of the
// 128 bytes that the banks span. All 32 lanes must execute it together.
#pragma once

#include "kernels/gpu/gpu.h"
#ifndef __CUDACC__
#include "kernels/simt/matrix_operations.h"
#endif

namespace orchard::GPU_NAMESPACE {

#ifdef __CUDACC__

__device__ __forceinline__ void ldmatrix(unsigned (&r)[1], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
               : "=r"(r[0])
               : "r"(shared_address(row))
               : "memory");
}

__device__ __forceinline__ void ldmatrix(unsigned (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}

__device__ __forceinline__ void ldmatrix(unsigned (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

__device__ __forceinline__ void ldmatrix_trans(unsigned (&r)[1], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
               : "=r"(r[0])
               : "r"(shared_address(row))
               : "memory");
}

__device__ __forceinline__ void ldmatrix_trans(unsigned (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}

__device__ __forceinline__ void ldmatrix_trans(unsigned (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

#else

template <int matrices>
void ldmatrix(unsigned (&r)[matrices], const void* row, Where where = Where::current()) {
  if (lane_index() < 8 * matrices) shared_access(row, 16, Access::read, where);
  LoadMatrixArguments arguments{r, row};
  warp_collective(load_matrix_operation(matrices, false), 0xffffffffu, &arguments, where);
}

template <int matrices>
void ldmatrix_trans(unsigned (&r)[matrices], const void* row, Where where = Where::current()) {
  if (lane_index() < 8 * matrices) shared_access(row, 16, Access::read, where);
  LoadMatrixArguments arguments{r, row};
  warp_collective(load_matrix_operation(matrices, true), 0xffffffffu, &arguments, where);
}

#endif

}  // namespace orchard::GPU_NAMESPACE
