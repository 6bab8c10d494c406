// The device that a run's model lives on.
#pragma once

#include <memory>

#include "kernels/device/device.h"

namespace orchard {

// The device that run.device names, for the rank of this number. Ranks fill nodes in order, so that
// on GPUs rank r takes GPU r modulo the number of GPUs. Throws ConfigurationError where this program
// was built without CUDA, and Error with the driver's reason where there is no GPU.
std::unique_ptr<Device> open_device(DeviceKind kind, int rank = 0);

}  // namespace orchard
