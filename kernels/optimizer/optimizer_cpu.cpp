#include "kernels/cpu/register.h"

namespace orchard::cpu {

void register_optimizer(OperationTable&) {}

}  // namespace orchard::cpu
