// How often a vendor's library ran an operation that an environment variable (ORCHARD_GPU_GEMM,
// ORCHARD_GPU_DEPTHWISE) asks it to run. It may decline a shape, which our kernel then answers: who
// compares the two looks here, to know that there were two. An extension of the device.
#pragma once

#include <cstdint>

namespace orchard {

struct LibraryCalls {
  std::int64_t count = 0;
};

}  // namespace orchard
