// The NCCL over which the devices of ranks communicate in tests: the library between GPUs, the emulated one
// between emulated devices.
#pragma once

#include <fmt/format.h>

#include <memory>
#include <string>

#include "comm/emulated_nccl.h"
#include "comm/nccl_library.h"
#include "kernels/core/tensor.h"
#ifdef ORCHARD_HAS_CUDA
#include "kernels/cuda/cuda_device.h"
#endif

namespace orchard::testing {

// The library, or the reason why there is none.
struct FoundNccl {
  std::shared_ptr<NcclLibrary> library;
  std::string absence;
};

// For so many ranks on this machine, all of which call it. Each needs a GPU of its own.
inline FoundNccl find_nccl(DeviceKind kind, [[maybe_unused]] int ranks) {
  if (kind == DeviceKind::simt) return {make_emulated_nccl(), {}};
#ifdef ORCHARD_HAS_CUDA
  if (const int gpus = cuda_device_count(); gpus < ranks) {
    return {nullptr,
            fmt::format("NCCL between {} ranks needs {} GPUs, here: {}", ranks, ranks, gpus)};
  }
  try {
    return {load_nccl(), {}};
  } catch (const Error& error) {
    return {nullptr, error.what()};
  }
#else
  return {nullptr, "this build has no CUDA"};
#endif
}

}  // namespace orchard::testing
