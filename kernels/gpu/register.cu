#include "kernels/gpu/register.h"

namespace orchard::GPU_NAMESPACE {

void register_operations(OperationTable& table) {
  register_attention(table);
  register_gemm(table);
  register_norm(table);
}

}  // namespace orchard::GPU_NAMESPACE
