// How the emulator stands in for a vendor's library, whose kernels it cannot run.
#pragma once

#include <functional>

#include "kernels/simt/simt_device.h"

namespace orchard::simt {

// The host does the library's work when the stream comes to it: `work` reaches the device's memory by
// SimtDevice::read and write, which check bounds. A graph records it. Nothing is counted.
void enqueue_library_call(Stream& stream, std::function<void(SimtDevice&)> work);

}  // namespace orchard::simt
