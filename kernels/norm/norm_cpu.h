// The files that make up the CPU's norms.
#pragma once

#include "kernels/device/operation_table.h"

namespace orchard::cpu {

void register_rms_norm(OperationTable&);

}  // namespace orchard::cpu
