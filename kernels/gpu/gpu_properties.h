// What launches ask about the GPU. Every device of kind cuda or simt fills its own in when it is made
// (Device::extension).
#pragma once

#include <cstddef>
#include <cstdint>

namespace orchard {

class Stream;

// What kernels are compiled for: those of sm_80 run on every GPU since, those of sm_90a on that alone.
enum class GpuArch : std::uint8_t { sm_80, sm_90a };

// Of shared memory, that a block can have on every GPU since sm_80: sm_86, sm_89 and sm_120 give 99 KiB,
// sm_80 and sm_87 163, sm_90 and sm_100 227 (CUDA C++ Programming Guide, "Technical Specifications per
// Compute Capability").
inline constexpr std::size_t least_shared_bytes = 99 * 1024;

struct GpuProperties {
  int compute_capability = 0;  // 90 for sm_90
  int multiprocessors = 0;
  std::size_t shared_bytes = 0;  // that a block can have
};

const GpuProperties& gpu_properties(Stream&);  // of the device of the stream

}  // namespace orchard
