#include "kernels/cuda/call.h"

namespace orchard::cuda {

std::string text_of(cudaError_t status) {
  return fmt::format("{} ({})", cudaGetErrorString(status), cudaGetErrorName(status));
}

std::string text_of(CUresult status) {
  const char *name = nullptr, *text = nullptr;
  try {
    const auto get_name =
        reinterpret_cast<decltype(&cuGetErrorName)>(driver_function("cuGetErrorName"));
    const auto get_text =
        reinterpret_cast<decltype(&cuGetErrorString)>(driver_function("cuGetErrorString"));
    get_name(status, &name);
    get_text(status, &text);
  } catch (const Error&) {
    // A driver that cannot even say what went wrong: the number must do.
  }
  return fmt::format("{} ({})", text ? text : "unknown error",
                     name ? name : fmt::format("CUresult {}", static_cast<int>(status)));
}

int attribute_of_device(cudaDeviceAttr attribute, int ordinal) {
  int value = 0;
  call("cudaDeviceGetAttribute", cudaDeviceGetAttribute, &value, attribute, ordinal);
  return value;
}

void* driver_function(const char* name) {
  constexpr unsigned first_version = 12000;
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result{};
  call("cudaGetDriverEntryPointByVersion", cudaGetDriverEntryPointByVersion, name, &function,
       first_version, cudaEnableDefault, &result);
  require(result == cudaDriverEntryPointSuccess && function != nullptr,
          "this driver has no {}: update it to one for CUDA 12", name);
  return function;
}

}  // namespace orchard::cuda
