// The files that make up the CPU's picture preparation.
#pragma once

#include "kernels/device/operation_table.h"

namespace orchard::cpu {

void register_resize(OperationTable&);
void register_patchify(OperationTable&);

}  // namespace orchard::cpu
