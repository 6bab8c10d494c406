// The CPU backend's operations, one function per folder of kernels/.
#pragma once

#include "kernels/device/operation_table.h"

namespace orchard::cpu {

void register_activation(OperationTable&);
void register_attention(OperationTable&);
void register_collective(OperationTable&);
void register_convolution(OperationTable&);
void register_elementwise(OperationTable&);
void register_embedding(OperationTable&);
void register_gemm(OperationTable&);
void register_image(OperationTable&);
void register_loss(OperationTable&);
void register_norm(OperationTable&);
void register_optimizer(OperationTable&);
void register_permute(OperationTable&);
void register_router(OperationTable&);

void register_operations(OperationTable&);  // all of the above

}  // namespace orchard::cpu
