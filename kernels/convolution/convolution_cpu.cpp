// Registers convolution and pooling of the CPU backend.
#include "kernels/convolution/convolution_cpu.h"

#include "kernels/cpu/register.h"

namespace orchard::cpu {

void register_convolution(OperationTable& table) {
  register_depthwise_convolution(table);
  register_adaptive_pool(table);
}

}  // namespace orchard::cpu
