// Registers convolution and pooling of GPUs.
#include "kernels/convolution/convolution_gpu.h"
#include "kernels/gpu/register.h"

namespace orchard::GPU_NAMESPACE {

void register_convolution(OperationTable& table) {
  register_depthwise_convolution(table);
  register_depthwise_weight_gradient(table);
  register_adaptive_pool(table);
}

}  // namespace orchard::GPU_NAMESPACE
