// The warp's matrix instructions: which lane holds which element (PTX ISA, "Matrix Fragments for
// mma.m16n8k16" and "ldmatrix"), and what they do. Lane l is in row group l / 4, at place l % 4.
#pragma once

#include "kernels/simt/runtime.h"

namespace orchard::simt {

struct LoadMatrixArguments {
  unsigned* registers;  // one for each matrix
  const void* row;      // 16 bytes of shared memory; used of the first 8 lanes for each matrix
};

struct StoreMatrixArguments {
  const unsigned* registers;
  void* row;
};

struct MmaArguments {
  float* d;           // [4]
  const unsigned* a;  // [4]
  unsigned b[2];
};

// ldmatrix .x1, .x2 or .x4, without or with .trans; one object each.
const WarpOperation& load_matrix_operation(int matrices, bool transposed);

// stmatrix, the same.
const WarpOperation& store_matrix_operation(int matrices, bool transposed);

extern const WarpOperation mma_m16n8k16_bf16_operation;

}  // namespace orchard::simt
