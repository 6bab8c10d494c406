// Registers convolution and pooling of GPUs, and chooses between our depthwise kernels and the vendor's
// library (ORCHARD_GPU_DEPTHWISE). The gradient of the weight is always ours: the library gives it in
// bf16, and we add it up in fp32.
#include <cstdlib>
#include <string_view>

#include "kernels/convolution/convolution_gpu.h"
#include "kernels/device/device.h"
#include "kernels/gpu/library_calls.h"
#include "kernels/gpu/register.h"

namespace orchard::GPU_NAMESPACE {
namespace {

// ORCHARD_GPU_DEPTHWISE, read once a device.
struct Forced {
  bool library = false;

  Forced() {
    const char* const value = std::getenv("ORCHARD_GPU_DEPTHWISE");
    const std::string_view name = value ? value : "own";
    require(name == "own" || name == "cudnn", "ORCHARD_GPU_DEPTHWISE is {}; it may be own or cudnn",
            name);
    library = name == "cudnn";
  }
};

template <class Operation>
void run_any(Stream& stream, const Operation& op) {
  const bool library = stream.device().extension<Forced>().library;
  if (library && run_library(stream, op)) {
    ++stream.device().extension<LibraryCalls>().count;
  } else {
    run_kernel(stream, op);
  }
}

}  // namespace

void register_convolution(OperationTable& table) {
  table.add<DepthwiseConv3x3Forward>(run_any);
  table.add<DepthwiseConv3x3BackwardInput>(run_any);
  register_depthwise_weight_gradient(table);
  register_adaptive_pool(table);
}

}  // namespace orchard::GPU_NAMESPACE
