// The GPU at hand.
#pragma once

#include "bench/gpu/gpu_bench.h"

namespace orchard::bench {

class CudaBench final : public GpuBench {
 public:
  CudaBench();  // throws Error where there is no GPU

  // The median of 30 calls in microseconds, each after the L2 cache was overwritten, by CUDA events.
  double median_us(const std::function<void()>& measured);

  // "NVIDIA H100 80GB HBM3, sm_90, 132 SMs, driver 13.0".
  std::string description() const;

  bool run_library(const Gemm& op) override;
  bool run_library(const DepthwiseConv3x3Forward& op) override;
  bool run_library(const DepthwiseConv3x3BackwardInput& op) override;

 private:
  Buffer flush_;  // twice the L2 cache
};

}  // namespace orchard::bench
