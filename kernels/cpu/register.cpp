#include "kernels/cpu/register.h"

namespace orchard::cpu {

void register_operations(OperationTable& table) {
  register_activation(table);
  register_attention(table);
  register_collective(table);
  register_convolution(table);
  register_elementwise(table);
  register_embedding(table);
  register_gemm(table);
  register_image(table);
  register_loss(table);
  register_norm(table);
  register_optimizer(table);
  register_permute(table);
  register_router(table);
}

}  // namespace orchard::cpu
