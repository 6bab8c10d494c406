// Registers the GPU's attention and chooses between its kernels.
#include <algorithm>
#include <array>
#include <cstdlib>
#include <initializer_list>
#include <string_view>

#include "kernels/attention/attention_gpu.h"
#include "kernels/device/device.h"
#include "kernels/gpu/gpu_properties.h"
#include "kernels/gpu/register.h"

namespace orchard::GPU_NAMESPACE {
namespace {

// Each takes less than the one before it.
enum class Kernel : std::uint8_t { fma, sm80, sm90 };

// ORCHARD_GPU_ATTENTION, read once a device: the last kernel of the list that may be taken.
struct Limit {
  Kernel kernel = Kernel::sm90;

  Limit() {
    const char* const value = std::getenv("ORCHARD_GPU_ATTENTION");
    const std::string_view name = value ? value : "auto";
    if (name == "auto") return;
    constexpr std::array names{"fma", "sm80", "sm90"};
    const auto found = std::find(names.begin(), names.end(), name);
    require(found != names.end(), "ORCHARD_GPU_ATTENTION is {}; it may be auto, {}, {} or {}", name,
            names[0], names[1], names[2]);
    kernel = static_cast<Kernel>(found - names.begin());
  }
};

// What the rows of the tensors allow: tensor-core kernels move them 16 bytes at a time, and those of
// sm_90 are made for two head_dims.
Kernel best_kernel(int compute_capability, std::initializer_list<ConstTensor> tensors) {
  Kernel best = compute_capability == 90 ? Kernel::sm90 : Kernel::sm80;
  for (const ConstTensor& tensor : tensors) {
    const std::int64_t head_dim = tensor.dim(2);
    if (tensor.dtype() != DType::bf16 || head_dim % 8 != 0 || head_dim > 128 ||
        reinterpret_cast<std::uintptr_t>(tensor.raw()) % 16 != 0) {
      return Kernel::fma;
    }
    const bool is_made = head_dim == 64 || head_dim == 128;
    if (!is_made || tensor.numel() == 0) best = Kernel::sm80;
  }
  return best;
}

Kernel choose_kernel(Stream& stream, std::initializer_list<ConstTensor> tensors) {
  return std::min(best_kernel(gpu_properties(stream).compute_capability, tensors),
                  stream.device().extension<Limit>().kernel);
}

void attention_forward(Stream& stream, const AttentionForward& op) {
  switch (choose_kernel(stream, {op.q, op.k, op.v, op.out})) {
    case Kernel::fma:
      return attention_forward_fma(stream, op);
    case Kernel::sm80:
      return attention_forward_mma(stream, op);
    case Kernel::sm90:
      return attention_forward_wgmma(stream, op);
  }
}

void attention_backward(Stream& stream, const AttentionBackward& op) {
  switch (choose_kernel(stream, {op.q, op.k, op.v, op.out, op.d_out, op.d_q, op.d_k, op.d_v})) {
    case Kernel::fma:
      return attention_backward_fma(stream, op);
    case Kernel::sm80:
      return attention_backward_mma(stream, op);
    case Kernel::sm90:
      return attention_backward_wgmma(stream, op);
  }
}

}  // namespace

void register_attention(OperationTable& table) {
  table.add<AttentionForward>(attention_forward);
  table.add<AttentionBackward>(attention_backward);
}

}  // namespace orchard::GPU_NAMESPACE
