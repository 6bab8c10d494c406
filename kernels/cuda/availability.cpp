#include "kernels/cuda/availability.h"

#include <cstdlib>

#include "kernels/cuda/call.h"

namespace orchard::cuda {
namespace {

constexpr int least_compute_capability = 80;

std::string version_text(int version) {
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

}  // namespace

Availability find_availability(int ordinal) {
  Availability found{.ordinal = ordinal};
  call("cudaDriverGetVersion", cudaDriverGetVersion, &found.driver_version);
  call("cudaRuntimeGetVersion", cudaRuntimeGetVersion, &found.runtime_version);
  const cudaError_t status = cudaGetDeviceCount(&found.devices);
  if (status != cudaSuccess) {
    found.error = text_of(status);
    found.devices = 0;
  }
  if (ordinal >= 0 && ordinal < found.devices) {
    found.compute_capability =
        10 * attribute_of_device(cudaDevAttrComputeCapabilityMajor, ordinal) +
        attribute_of_device(cudaDevAttrComputeCapabilityMinor, ordinal);
  }
  return found;
}

std::string absence_of_gpu(const Availability& found) {
  if (found.driver_version == 0) {
    return "no NVIDIA driver is installed here (libcuda.so.1): use a machine with a GPU, or "
           "--device cpu";
  }
  // Drivers run programs of every CUDA of their own major version.
  if (found.driver_version / 1000 < found.runtime_version / 1000) {
    return fmt::format(
        "the NVIDIA driver is too old: it knows CUDA {}, and this program was built with CUDA {}: "
        "update the driver, or build with an older CUDA",
        version_text(found.driver_version), version_text(found.runtime_version));
  }
  if (!found.error.empty()) return fmt::format("no GPU can be used: {}", found.error);
  if (found.devices == 0) {
    return "no GPU is visible to this process: CUDA_VISIBLE_DEVICES may hide it; or use --device "
           "cpu";
  }
  if (found.ordinal < 0 || found.ordinal >= found.devices)
    return fmt::format("there is no GPU {}: this process sees {}", found.ordinal, found.devices);
  if (found.compute_capability < least_compute_capability) {
    return fmt::format("GPU {} is of sm_{}, and the kernels need sm_{} (Ampere) or later",
                       found.ordinal, found.compute_capability, least_compute_capability);
  }
  return {};
}

}  // namespace orchard::cuda
