// Depthwise convolution of bf16 by NVIDIA's cuDNN 9, found at run time: a choice
// (ORCHARD_GPU_DEPTHWISE=cudnn) where the program was built with its headers. fp32 stays with our kernels:
// cuDNN may compute it in TF32.
#pragma once

#include <string>

#include "kernels/convolution/convolution.h"

namespace orchard::cuda {

// Why there is no cuDNN, in one line; empty where there is one.
const std::string& cudnn_absence();
// The same, were this the file to look for.
std::string absence_of_cudnn(const char* file);

// Queues the convolution with the algorithm that cuDNN recommends first of those that give the same
// bits every time. False, having done nothing, where it recommends none and for fp32. Throws Error where there is
// no cuDNN, or it fails.
bool run_library(Stream& stream, const DepthwiseConv3x3Forward& op);
bool run_library(Stream& stream, const DepthwiseConv3x3BackwardInput& op);

}  // namespace orchard::cuda
