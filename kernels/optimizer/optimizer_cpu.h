// The files that make up the CPU's optimizers.
#pragma once

#include "kernels/device/operation_table.h"

namespace orchard::cpu {

void register_adamw(OperationTable&);
void register_adafactor(OperationTable&);
void register_adafactor_parts(OperationTable&);
void register_gradient_norm(OperationTable&);

}  // namespace orchard::cpu
