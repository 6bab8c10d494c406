#include "kernels/gpu/register.h"

namespace orchard::GPU_NAMESPACE {

void register_operations(OperationTable& table) {
  register_convolution(table);
  register_embedding(table);
  register_norm(table);
  register_permute(table);
  register_router(table);
}

}  // namespace orchard::GPU_NAMESPACE
