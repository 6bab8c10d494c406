#include "kernels/cpu/register.h"

namespace orchard::cpu {

void register_elementwise(OperationTable&) {}

}  // namespace orchard::cpu
