// The files that make up a GPU's convolution and pooling.
#pragma once

#include "kernels/device/operation_table.h"
#include "kernels/gpu/gpu.h"

namespace orchard::GPU_NAMESPACE {

void register_depthwise_convolution(OperationTable&);
void register_depthwise_weight_gradient(OperationTable&);
void register_adaptive_pool(OperationTable&);

}  // namespace orchard::GPU_NAMESPACE
