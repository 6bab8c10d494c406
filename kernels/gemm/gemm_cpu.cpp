#include "kernels/cpu/register.h"

namespace orchard::cpu {

void register_gemm(OperationTable&) {}

}  // namespace orchard::cpu
