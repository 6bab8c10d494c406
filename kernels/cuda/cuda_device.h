// The CUDA backend. The program links the CUDA runtime statically and starts on machines without a
// GPU or driver; only make_cuda_device needs one.
#pragma once

#include <memory>

#include "kernels/device/device.h"

namespace orchard {

// GPU number `ordinal` with every CUDA operation registered. It becomes the current GPU of the
// calling thread, which must be the one that drives the device. Throws Error, one line that says what
// is missing, where there is no GPU that the kernels run on, or no driver for it.
std::unique_ptr<Device> make_cuda_device(int ordinal = 0);

// GPUs that this process sees: 0 without a driver.
int cuda_device_count();

namespace cuda {
void register_operations(OperationTable&);
}

}  // namespace orchard
