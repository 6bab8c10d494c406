// Registers the GPU's attention and chooses between its kernels.
#include <initializer_list>

#include "kernels/attention/attention_gpu.h"
#include "kernels/gpu/register.h"

namespace orchard::GPU_NAMESPACE {

namespace {

// Whether the rows of the tensors can travel 16 bytes at a time and the tensor-core kernels have an
// instance for them.
bool takes_tensor_cores(std::initializer_list<ConstTensor> tensors) {
  for (const ConstTensor& tensor : tensors) {
    const std::int64_t head_dim = tensor.dim(2);
    if (tensor.dtype() != DType::bf16 || head_dim % 8 != 0 || head_dim > 128) return false;
    if (reinterpret_cast<std::uintptr_t>(tensor.raw()) % 16 != 0) return false;
  }
  return true;
}

void attention_forward(Stream& stream, const AttentionForward& op) {
  (takes_tensor_cores({op.q, op.k, op.v, op.out}) ? attention_forward_mma : attention_forward_fma)(
      stream, op);
}

void attention_backward(Stream& stream, const AttentionBackward& op) {
  (takes_tensor_cores({op.q, op.k, op.v, op.out, op.d_out, op.d_q, op.d_k, op.d_v})
       ? attention_backward_mma
       : attention_backward_fma)(stream, op);
}

}  // namespace

void register_attention(OperationTable& table) {
  table.add<AttentionForward>(attention_forward);
  table.add<AttentionBackward>(attention_backward);
}

}  // namespace orchard::GPU_NAMESPACE
