// The files that make up the CPU's norms.
#pragma once

#include "kernels/device/operation_table.h"

namespace orchard::cpu {

void register_rms_norm(OperationTable&);
void register_layer_norm(OperationTable&);
void register_qk_norm_rope(OperationTable&);

}  // namespace orchard::cpu
