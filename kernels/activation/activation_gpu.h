// The files that make up the activations of the CUDA and SIMT backends.
#pragma once

#include "kernels/device/operation_table.h"
#include "kernels/gpu/gpu.h"

namespace orchard::GPU_NAMESPACE {

void register_pointwise_activation(OperationTable&);
void register_excite(OperationTable&);

}  // namespace orchard::GPU_NAMESPACE
