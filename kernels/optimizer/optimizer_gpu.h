// The files that make up the optimizers of the CUDA and SIMT backends.
#pragma once

#include "kernels/device/operation_table.h"
#include "kernels/gpu/gpu.h"

namespace orchard::GPU_NAMESPACE {

void register_adamw(OperationTable&);
void register_adafactor(OperationTable&);
void register_adafactor_parts(OperationTable&);
void register_gradient_norm(OperationTable&);

}  // namespace orchard::GPU_NAMESPACE
