// mma.sync: a warp multiplies matrices that lie in its registers. From sm_80 on.
//
// Lane l, row group g = l / 4, place q = l % 4; a register of 16-bit elements holds two, h = 0 in its
// lower half:
//   a [16, 16]  4 registers   row g + 8·(r % 2), column 2q + h + 8·(r / 2)
//   b [16, 8]   2 registers   row 2q + h + 8·r, column g
//   d [16, 8]   4 floats      row g + 8·(i / 2), column 2q + i % 2
// All 32 lanes must execute it together.
#pragma once

#include "kernels/gpu/gpu.h"
#ifndef __CUDACC__
#include "kernels/simt/matrix_operations.h"
#endif

namespace orchard::GPU_NAMESPACE {

#ifdef __CUDACC__

// d += a · b of bf16, accumulated in fp32.
__device__ __forceinline__ void mma_m16n8k16_bf16(float (&d)[4], const unsigned (&a)[4],
                                                  unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

#else

inline void mma_m16n8k16_bf16(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1,
                              Where where = Where::current()) {
  MmaArguments arguments{d, a, {b0, b1}};
  warp_collective(mma_m16n8k16_bf16_operation, 0xffffffffu, &arguments, where);
}

#endif

}  // namespace orchard::GPU_NAMESPACE
