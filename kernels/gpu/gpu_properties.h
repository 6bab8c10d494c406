// What launches ask about the GPU. Every device of kind cuda or simt fills its own in when it is made
// (Device::extension).
#pragma once

#include "kernels/device/device.h"

namespace orchard {

struct GpuProperties {
  int compute_capability = 0;  // 90 for sm_90
  int multiprocessors = 0;
};

inline const GpuProperties& gpu_properties(Stream& stream) {
  return stream.device().extension<GpuProperties>();
}

}  // namespace orchard
