// Registers dispatch and combine of GPUs.
#include "kernels/gpu/register.h"
#include "kernels/permute/permute_gpu.h"

namespace orchard::GPU_NAMESPACE {

void register_permute(OperationTable& table) {
  register_permute_plan(table);
  register_permute_rows(table);
  register_exchange(table);
}

}  // namespace orchard::GPU_NAMESPACE
