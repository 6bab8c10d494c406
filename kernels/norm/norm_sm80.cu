// Registers the norms of the CUDA and SIMT backends.
#include "kernels/gpu/register.h"
#include "kernels/norm/norm_gpu.h"

namespace orchard::GPU_NAMESPACE {

void register_norm(OperationTable& table) {
  register_norm_forward(table);
  register_norm_backward(table);
  register_qk_norm_rope(table);
}

}  // namespace orchard::GPU_NAMESPACE
