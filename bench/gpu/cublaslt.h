// The yardstick of matrix products: NVIDIA's cuBLASLt, found at run time.
#pragma once

#include <functional>
#include <string>

#include "kernels/gemm/gemm.h"

namespace orchard::bench {

// Why there is no cuBLASLt, or nothing.
const std::string& cublaslt_absence();

// A call that computes the product with the algorithm that cuBLASLt recommends first; empty where it
// has none, or is absent. No bias.
std::function<void()> cublaslt_call(Stream& stream, const Gemm& op);

}  // namespace orchard::bench
