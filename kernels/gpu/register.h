// The operations that exist as CUDA kernels, one function per folder of kernels/. Compiled into
// orchard_kernels_cuda (namespace cuda) and orchard_kernels_simt (namespace simt).
#pragma once

#include "kernels/device/operation_table.h"
#include "kernels/gpu/gpu.h"

namespace orchard::GPU_NAMESPACE {

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

}  // namespace orchard::GPU_NAMESPACE
