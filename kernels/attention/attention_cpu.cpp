#include "kernels/cpu/register.h"

namespace orchard::cpu {

void register_attention(OperationTable&) {}

}  // namespace orchard::cpu
