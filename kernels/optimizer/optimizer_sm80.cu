// Registers the optimizers of the CUDA and SIMT backends.
#include "kernels/gpu/register.h"
#include "kernels/optimizer/optimizer_gpu.h"

namespace orchard::GPU_NAMESPACE {

void register_optimizer(OperationTable& table) {
  register_adamw(table);
  register_adafactor(table);
  register_gradient_norm(table);
}

}  // namespace orchard::GPU_NAMESPACE
