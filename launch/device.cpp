#include "launch/device.h"

#include <algorithm>

#include "kernels/simt/simt_device.h"
#include "launch/configuration_error.h"
#ifdef ORCHARD_HAS_CUDA
#include "kernels/cuda/cuda_device.h"
#endif

namespace orchard {

std::unique_ptr<Device> open_device(DeviceKind kind, int rank) {
  switch (kind) {
    case DeviceKind::cpu:
      return make_cpu_device();
    case DeviceKind::simt:
      return make_simt_device();
    case DeviceKind::cuda:
#ifdef ORCHARD_HAS_CUDA
      return make_cuda_device(rank % std::max(cuda_device_count(), 1));
#else
      (void)rank;
      throw ConfigurationError(
          "--device cuda: this program was built without CUDA. Build it with the preset cuda "
          "(launch/build.sh cuda), or run with --device cpu");
#endif
  }
  fail("device kind {} is unknown", static_cast<int>(kind));
}

}  // namespace orchard
