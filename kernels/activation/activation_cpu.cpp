// Registers the activations of the CPU backend.
#include "kernels/activation/activation_cpu.h"

#include "kernels/cpu/register.h"

namespace orchard::cpu {

void register_activation(OperationTable& table) {
  register_pointwise_activation(table);
  register_excite(table);
}

}  // namespace orchard::cpu
