#include "kernels/cpu/register.h"

namespace orchard::cpu {

void register_image(OperationTable&) {}

}  // namespace orchard::cpu
