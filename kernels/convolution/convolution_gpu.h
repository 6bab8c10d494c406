// The files that make up a GPU's convolution and pooling.
#pragma once

#include "kernels/convolution/convolution.h"
#include "kernels/device/operation_table.h"
#include "kernels/gpu/gpu.h"

namespace orchard::GPU_NAMESPACE {

// Our kernels.
void run_kernel(Stream&, const DepthwiseConv3x3Forward&);
void run_kernel(Stream&, const DepthwiseConv3x3BackwardInput&);

// The vendor's library: cuDNN on a GPU (kernels/cuda/cudnn.h); the emulator computes on the CPU. False,
// having done nothing, where it does not take such operands. Throw Error where there is no library.
bool run_library(Stream&, const DepthwiseConv3x3Forward&);
bool run_library(Stream&, const DepthwiseConv3x3BackwardInput&);

void register_depthwise_weight_gradient(OperationTable&);
void register_adaptive_pool(OperationTable&);

}  // namespace orchard::GPU_NAMESPACE
