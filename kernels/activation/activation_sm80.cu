// Registers the activations of the CUDA and SIMT backends.
#include "kernels/activation/activation_gpu.h"
#include "kernels/gpu/register.h"

namespace orchard::GPU_NAMESPACE {

void register_activation(OperationTable& table) {
  register_pointwise_activation(table);
  register_excite(table);
}

}  // namespace orchard::GPU_NAMESPACE
