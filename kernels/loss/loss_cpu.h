// The files that make up the CPU's losses.
#pragma once

#include "kernels/device/operation_table.h"

namespace orchard::cpu {

void register_sharded_loss(OperationTable&);

}  // namespace orchard::cpu
