// Matrix products by NVIDIA's cuBLASLt, found at run time: a yardstick, and a choice
// (ORCHARD_GPU_GEMM=cublaslt).
#pragma once

#include <string>

#include "kernels/gemm/gemm.h"

namespace orchard::cuda {

// Why there is no cuBLASLt, in one line; empty where there is one.
const std::string& cublaslt_absence();

// Queues the product with the algorithm that cuBLASLt recommends first for such operands, and takes
// 32 MiB of the stream's workspace. False, having done nothing, where it recommends none. Throws
// Error where there is no cuBLASLt.
bool run_library(Stream& stream, const Gemm& op);

}  // namespace orchard::cuda
