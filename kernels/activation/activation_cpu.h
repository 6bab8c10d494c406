// The files that make up the CPU's activations.
#pragma once

#include "kernels/device/operation_table.h"

namespace orchard::cpu {

void register_pointwise_activation(OperationTable&);
void register_excite(OperationTable&);

}  // namespace orchard::cpu
