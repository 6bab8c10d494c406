// Registers dispatch and combine of the CPU backend.
#include "kernels/permute/permute_cpu.h"

#include "kernels/cpu/register.h"

namespace orchard::cpu {

void register_permute(OperationTable& table) {
  register_permute_plan(table);
  register_permute_rows(table);
  register_exchange(table);
}

}  // namespace orchard::cpu
