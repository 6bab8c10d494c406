// The emulator has no vendor's library of convolutions: the CPU's implementation stands in.
#include <vector>

#include "kernels/convolution/convolution_gpu.h"
#include "kernels/simt/library_call.h"

namespace orchard::simt {
namespace {

// An operand's bytes on the host.
class HostCopy {
 public:
  explicit HostCopy(const ConstTensor& tensor) : tensor_(tensor), bytes_(tensor.size_bytes()) {}
  Tensor host() { return {bytes_.data(), tensor_.dtype(), tensor_.shape(), DeviceKind::cpu}; }

 private:
  ConstTensor tensor_;
  std::vector<std::byte> bytes_;
};

// Runs `make(a, b, result)` on the CPU when the stream comes to it, with copies of the operands.
template <class Make>
void enqueue_on_cpu(Stream& stream, const ConstTensor& a, const ConstTensor& b,
                    const Tensor& result, Make make) {
  enqueue_library_call(stream, [a, b, result, make](SimtDevice& device) {
    const auto cpu = make_cpu_device();
    const auto cpu_stream = cpu->make_stream();
    HostCopy host_a(a), host_b(b), host_result(result);
    device.read(host_a.host().raw(), a.raw(), a.size_bytes());
    device.read(host_b.host().raw(), b.raw(), b.size_bytes());
    run(*cpu_stream, make(host_a.host(), host_b.host(), host_result.host()));
    cpu_stream->synchronize();
    device.write(result.raw(), host_result.host().raw(), result.size_bytes());
  });
}

}  // namespace

bool run_library(Stream& stream, const DepthwiseConv3x3Forward& op) {
  enqueue_on_cpu(stream, op.x, op.weight, op.y, [](Tensor x, Tensor weight, Tensor y) {
    return DepthwiseConv3x3Forward{.x = x, .weight = weight, .y = y};
  });
  return true;
}

bool run_library(Stream& stream, const DepthwiseConv3x3BackwardInput& op) {
  enqueue_on_cpu(stream, op.d_y, op.weight, op.d_x, [](Tensor d_y, Tensor weight, Tensor d_x) {
    return DepthwiseConv3x3BackwardInput{.d_y = d_y, .weight = weight, .d_x = d_x};
  });
  return true;
}

}  // namespace orchard::simt
