// What launches need from the CUDA device: the native stream, and errors that name the call.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/core/error.h"
#include "kernels/device/device.h"
#include "kernels/gpu/launch_shape.h"

namespace orchard::cuda {

// Throws Error "<what>: <CUDA's text> (<CUDA's name>)" unless the call succeeded.
template <class... Args>
void check(cudaError_t status, fmt::format_string<Args...> what, Args&&... args) {
  if (status == cudaSuccess) return;
  fail("{}: {} ({})", fmt::format(what, std::forward<Args>(args)...), cudaGetErrorString(status),
       cudaGetErrorName(status));
}

// The handle behind a stream of a CUDA device; throws for any other device's.
cudaStream_t native_stream(Stream& stream);

}  // namespace orchard::cuda
