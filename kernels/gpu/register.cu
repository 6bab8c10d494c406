#include "kernels/gpu/register.h"

namespace orchard::GPU_NAMESPACE {

void register_operations(OperationTable& table) {
  register_activation(table);
  register_elementwise(table);
  register_gemm(table);
  register_loss(table);
  register_norm(table);
  register_optimizer(table);
}

}  // namespace orchard::GPU_NAMESPACE
