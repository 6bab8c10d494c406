// The files that make up a GPU's picture preparation.
#pragma once

#include "kernels/device/operation_table.h"
#include "kernels/gpu/gpu.h"

namespace orchard::GPU_NAMESPACE {

void register_resize(OperationTable&);
void register_patchify(OperationTable&);

}  // namespace orchard::GPU_NAMESPACE
