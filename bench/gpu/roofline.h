// What the GPU at hand reaches at best, measured in the same process: the ceilings that a case's time is
// held against (Williams, Waterman, Patterson, 2009, "Roofline").
#pragma once

#include "bench/gpu/cuda_bench.h"

namespace orchard::bench {

struct Roofline {
  double bf16_tflops = 0, f32_tflops = 0;  // of products of large squares, ours or cuBLASLt's
  double gbs = 0;                          // of a copy of 1 GiB, reads and writes counted

  static Roofline measure(CudaBench& bench);

  // The share of the ceiling that a call of `us` microseconds reaches: its work takes at least as
  // long as its FLOPs, and as its bytes.
  double share(const GpuCase& test, double us) const;
};

}  // namespace orchard::bench
