// f32 products by a library function, for CPUs on which oneDNN has no tile kernels: oneDNN's own
// sgemm, or OpenBLAS's, which is loaded when first wanted so that the program starts without it.
#pragma once

#include <cstdint>

#include "kernels/gemm/gemm.h"

namespace orchard::cpu {

// c [m, n] = op(a) · op(b) + beta·c, row-major; lda, ldb and ldc are row strides in elements.
struct SgemmArguments {
  Transpose transpose_a = Transpose::no;
  Transpose transpose_b = Transpose::no;
  std::int64_t m = 0, n = 0, k = 0;
  const float* a = nullptr;
  std::int64_t lda = 0;
  const float* b = nullptr;
  std::int64_t ldb = 0;
  float beta = 0;
  float* c = nullptr;
  std::int64_t ldc = 0;
};

// Runs on the calling thread alone when called inside a parallel region, or when OpenMP has one
// thread. False: the library reported an error.
using Sgemm = bool (*)(const SgemmArguments&);

Sgemm onednn_sgemm();
Sgemm openblas_sgemm();  // nullptr where the library is not installed

}  // namespace orchard::cpu
