// The files that make up the CPU's gathers and scatters.
#pragma once

#include "kernels/device/operation_table.h"

namespace orchard::cpu {

void register_embedding_rows(OperationTable&);
void register_class_token(OperationTable&);

}  // namespace orchard::cpu
