// The files that make up the CPU's convolution and pooling.
#pragma once

#include "kernels/device/operation_table.h"

namespace orchard::cpu {

void register_depthwise_convolution(OperationTable&);
void register_adaptive_pool(OperationTable&);

}  // namespace orchard::cpu
