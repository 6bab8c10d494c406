#include "kernels/gpu/gpu_properties.h"

#include "kernels/device/device.h"

namespace orchard {

const GpuProperties& gpu_properties(Stream& stream) {
  return stream.device().extension<GpuProperties>();
}

}  // namespace orchard
