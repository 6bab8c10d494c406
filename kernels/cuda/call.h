// The one way in which CUDA is called: a failure becomes an Error that says the call, its arguments,
// the error's name and its text.
//
//   call("cudaMemsetAsync", cudaMemsetAsync, data, 0, bytes, handle);
//
// Kernels fail while later calls are made. The streams' own calls therefore pass the log of what they
// launched, whose last kernels end the message:
//
//   call_after(launches, "cudaStreamSynchronize", cudaStreamSynchronize, handle);
#pragma once

#include <cuda.h>  // the types alone: the driver is found at run time
#include <cuda_runtime_api.h>

#include "kernels/core/error.h"
#include "kernels/gpu/call_text.h"
#include "kernels/gpu/launch_log.h"

namespace orchard::cuda {

// "invalid argument (cudaErrorInvalidValue)".
std::string text_of(cudaError_t status);
std::string text_of(CUresult status);

template <class Result, class... Parameters, class... Arguments>
void call_after(const LaunchLog& launches, const char* name, Result (*function)(Parameters...),
                Arguments... arguments) {
  const Result status = function(arguments...);
  if (status != Result{}) [[unlikely]] {
    fail("{} failed: {}{}", call_text(name, arguments...), text_of(status), launches.text());
  }
}

template <class Result, class... Parameters, class... Arguments>
void call(const char* name, Result (*function)(Parameters...), Arguments... arguments) {
  call_after(LaunchLog(), name, function, arguments...);
}

int attribute_of_device(cudaDeviceAttr attribute, int ordinal);

// The driver's function of this name, of CUDA 12 or later; throws Error where the driver lacks it.
void* driver_function(const char* name);

}  // namespace orchard::cuda
