// What matrix products this machine can do: the yardstick of a training step, and the table of the
// libraries behind it.
#pragma once

#include <string>

#include "kernels/core/dtype.h"
#include "kernels/device/device.h"

namespace orchard {

// FLOP/s of the quickest of several Gemms on large matrices of this dtype, measured now on the
// stream's device and threads; takes about a second and 100 MB, which it returns.
double measure_gemm_peak(Stream& stream, DType dtype);

// One line a dtype, "f32: oneDNN tile kernels": what computes matrix products on
// this CPU device, as ORCHARD_GEMM (see gemm.h) and the CPU decide.
std::string gemm_table(Device& device);

}  // namespace orchard
