#include "kernels/cpu/register.h"

namespace orchard::cpu {

void register_loss(OperationTable&) {}

}  // namespace orchard::cpu
