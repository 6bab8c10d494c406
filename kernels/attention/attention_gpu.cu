// Registers the GPU's attention and chooses between its kernels.
#include "kernels/attention/attention_gpu.h"
#include "kernels/gpu/register.h"

namespace orchard::GPU_NAMESPACE {

void register_attention(OperationTable& table) {
  table.add<AttentionForward>(attention_forward_fma);
  table.add<AttentionBackward>(attention_backward_fma);
}

}  // namespace orchard::GPU_NAMESPACE
