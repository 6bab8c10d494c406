// The emulator has no vendor's library of matrix products.
#include "kernels/gemm/gemm_gpu.h"

namespace orchard::simt {

bool run_library(Stream&, const Gemm&) {
  fail(
      "ORCHARD_GPU_GEMM is cublaslt, which computes on a GPU: the emulator runs Orchard's kernels");
}

}  // namespace orchard::simt
