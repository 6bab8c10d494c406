// Registers the optimizers of the CPU backend.
#include "kernels/optimizer/optimizer_cpu.h"

#include "kernels/cpu/register.h"

namespace orchard::cpu {

void register_optimizer(OperationTable& table) {
  register_adamw(table);
  register_adafactor(table);
  register_adafactor_parts(table);
  register_gradient_norm(table);
}

}  // namespace orchard::cpu
