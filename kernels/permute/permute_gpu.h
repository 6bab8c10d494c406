// The files that make up a GPU's dispatch and combine.
#pragma once

#include "kernels/device/operation_table.h"
#include "kernels/gpu/gpu.h"

namespace orchard::GPU_NAMESPACE {

void register_permute_plan(OperationTable&);
void register_permute_rows(OperationTable&);
void register_exchange(OperationTable&);

}  // namespace orchard::GPU_NAMESPACE
