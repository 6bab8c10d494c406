// The files that make up a GPU's gathers and scatters.
#pragma once

#include "kernels/device/operation_table.h"
#include "kernels/gpu/gpu.h"

namespace orchard::GPU_NAMESPACE {

void register_embedding_rows(OperationTable&);
void register_class_token(OperationTable&);

}  // namespace orchard::GPU_NAMESPACE
