// Registers the CPU's attention.
#include "kernels/attention/attention_cpu.h"

#include "kernels/cpu/register.h"
#include "kernels/device/device.h"

namespace orchard::cpu {

void zero_outside(Stream& stream, const Tensor& tensor, std::int64_t begin, std::int64_t end) {
  if (tensor.numel() == 0) return;
  stream.fill_zero(tensor.slice(0, begin));
  stream.fill_zero(tensor.slice(end, tensor.dim(0) - end));
}

void register_attention(OperationTable& table) {
  register_attention_forward(table);
  register_attention_backward(table);
}

}  // namespace orchard::cpu
