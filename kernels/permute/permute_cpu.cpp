#include "kernels/cpu/register.h"

namespace orchard::cpu {

void register_permute(OperationTable&) {}

}  // namespace orchard::cpu
