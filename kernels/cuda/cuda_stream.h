// What launches need from the CUDA device.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/device/stream.h"
#include "kernels/gpu/launch_shape.h"

namespace orchard::cuda {

// The handle behind a stream of a CUDA device; throws for any other device's.
cudaStream_t native_stream(Stream& stream);

// A kernel has been launched on the stream, with this result: the stream remembers it. Throws Error,
// which names the kernel and its shape, unless the launch succeeded.
void launched(Stream& stream, const LaunchShape& shape, cudaError_t status);

// Lets a kernel have this much shared memory. Throws Error where the GPU has less.
void allow_shared_bytes(const void* kernel, const LaunchShape& shape);

}  // namespace orchard::cuda
