#include "kernels/cpu/register.h"

namespace orchard::cpu {

void register_convolution(OperationTable&) {}

}  // namespace orchard::cpu
