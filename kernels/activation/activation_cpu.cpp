#include "kernels/cpu/register.h"

namespace orchard::cpu {

void register_activation(OperationTable&) {}

}  // namespace orchard::cpu
