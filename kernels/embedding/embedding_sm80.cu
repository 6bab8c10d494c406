// Registers the gathers and scatters of GPUs.
#include "kernels/embedding/embedding_gpu.h"
#include "kernels/gpu/register.h"

namespace orchard::GPU_NAMESPACE {

void register_embedding(OperationTable& table) {
  register_embedding_rows(table);
  register_class_token(table);
}

}  // namespace orchard::GPU_NAMESPACE
