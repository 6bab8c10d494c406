#include "kernels/cpu/register.h"

namespace orchard::cpu {

void register_embedding(OperationTable&) {}

}  // namespace orchard::cpu
