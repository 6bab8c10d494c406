// What launches ask about the GPU. Every device of kind cuda or simt fills its own in when it is made
// (Device::extension).
#pragma once

#include <cstdint>

#include "kernels/device/device.h"

namespace orchard {

// What kernels are compiled for: those of sm_80 run on every GPU since, those of sm_90a on that alone.
enum class GpuArch : std::uint8_t { sm_80, sm_90a };

struct GpuProperties {
  int compute_capability = 0;  // 90 for sm_90
  int multiprocessors = 0;
};

inline const GpuProperties& gpu_properties(Stream& stream) {
  return stream.device().extension<GpuProperties>();
}

}  // namespace orchard
