#include "kernels/cpu/register.h"

namespace orchard::cpu {

void register_router(OperationTable&) {}

}  // namespace orchard::cpu
