// What bench_gpu measures: a table of cases an operation, in a file each (gemm_cases.cpp, ...), put
// together in bench_gpu.cpp.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "kernels/device/device.h"

namespace orchard::bench {

// The GPU, and the operands of the case at hand.
class GpuBench {
 public:
  GpuBench();  // throws Error where there is no GPU

  Device& device() { return *device_; }
  Stream& stream() { return *stream_; }

  // Operands that live until the next case. Values are normal, scaled by `scale`: a product of zeros
  // or small integers is faster than a real one.
  Tensor random(DType dtype, const Shape& shape, float scale = 1);
  Tensor integers(const std::vector<std::int32_t>& values);
  Tensor zeros(DType dtype, const Shape& shape);
  Tensor bytes(std::int64_t count);  // u8, whatever they are
  void forget_operands() { buffers_.clear(); }

  // The median of 30 calls in microseconds, each after the L2 cache was overwritten, by CUDA events.
  double median_us(const std::function<void()>& measured);

  // "NVIDIA H100 80GB HBM3, sm_90, 132 SMs, driver 13.0".
  std::string description() const;

 private:
  const std::vector<std::byte>& pattern(DType dtype, float scale);
  Tensor allocate(DType dtype, const Shape& shape);

  std::unique_ptr<Device> device_;
  std::unique_ptr<Stream> stream_;
  std::vector<Buffer> buffers_;
  std::map<std::pair<DType, float>, std::vector<std::byte>> patterns_;  // by scale
  Buffer flush_;                                                        // twice the L2 cache
};

// One operation at one shape.
struct GpuCase {
  std::string name;
  double flops = 0;                // of one call
  double bytes = 0;                // that one call must move: every operand once
  DType arithmetic = DType::bf16;  // which of the GPU's rates bounds the FLOPs

  struct Calls {
    std::function<void()> ours;
    std::function<void()> reference = {};  // what ours is measured against; empty: nothing
    const char* reference_name = "library";
  };
  // Makes the operands, and the calls that use them.
  std::function<Calls(GpuBench&)> prepare;
};

std::vector<GpuCase> attention_cases();
std::vector<GpuCase> gemm_cases();
std::vector<GpuCase> moe_cases();
std::vector<GpuCase> picture_cases();
std::vector<GpuCase> row_cases();

}  // namespace orchard::bench
