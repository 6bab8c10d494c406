// Registers the norms of the CPU backend.
#include "kernels/norm/norm_cpu.h"

#include "kernels/cpu/register.h"

namespace orchard::cpu {

void register_norm(OperationTable& table) {
  register_rms_norm(table);
  register_layer_norm(table);
  register_qk_norm_rope(table);
}

}  // namespace orchard::cpu
