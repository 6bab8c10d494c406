// The files that make up the CPU's dispatch and combine.
#pragma once

#include "kernels/device/operation_table.h"

namespace orchard::cpu {

void register_permute_plan(OperationTable&);
void register_permute_rows(OperationTable&);
void register_exchange(OperationTable&);

}  // namespace orchard::cpu
