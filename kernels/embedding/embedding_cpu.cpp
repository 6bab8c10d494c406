// Registers the gathers and scatters of the CPU backend.
#include "kernels/embedding/embedding_cpu.h"

#include "kernels/cpu/register.h"

namespace orchard::cpu {

void register_embedding(OperationTable& table) {
  register_embedding_rows(table);
  register_class_token(table);
}

}  // namespace orchard::cpu
