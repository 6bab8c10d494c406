// Registers picture preparation of the CPU backend.
#include "kernels/image/image_cpu.h"

#include "kernels/cpu/register.h"

namespace orchard::cpu {

void register_image(OperationTable& table) {
  register_resize(table);
  register_patchify(table);
}

}  // namespace orchard::cpu
