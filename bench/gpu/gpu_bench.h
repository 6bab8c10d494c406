// What bench_gpu measures: a table of cases an operation, in a file each (gemm_cases.cpp, ...). Cases know
// the operations and no CUDA, so that a test goes through all of them without a GPU
// (tests/bench/gpu_cases_test.cpp).
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/convolution/convolution.h"
#include "kernels/device/device.h"
#include "kernels/gemm/gemm.h"

namespace orchard::bench {

// The device, and the operands of the case at hand.
class GpuBench {
 public:
  explicit GpuBench(std::unique_ptr<Device> device)
      : device_(std::move(device)), stream_(device_->make_stream()) {}
  virtual ~GpuBench() = default;
  GpuBench(const GpuBench&) = delete;
  GpuBench& operator=(const GpuBench&) = delete;

  Device& device() { return *device_; }
  Stream& stream() { return *stream_; }

  // Operands that live until the next case. Values are normal, scaled by `scale`: a product of zeros
  // or small integers is faster than a real one.
  Tensor random(DType dtype, const Shape& shape, float scale = 1);
  Tensor integers(const std::vector<std::int32_t>& values);
  Tensor integers(const std::vector<std::int32_t>& values, const Shape& shape);
  Tensor zeros(DType dtype, const Shape& shape);
  Tensor bytes(std::int64_t count) { return bytes(Shape{count}); }  // u8, whatever they are
  Tensor bytes(const Shape& shape) { return allocate(DType::u8, shape); }
  void forget_operands() { buffers_.clear(); }

  // Queues the operation in the vendor's library (cuBLASLt, cuDNN). False, having done nothing, where
  // there is none or it does not take the operands.
  virtual bool run_library(const Gemm&) = 0;
  virtual bool run_library(const DepthwiseConv3x3Forward&) = 0;
  virtual bool run_library(const DepthwiseConv3x3BackwardInput&) = 0;

 private:
  const std::vector<std::byte>& pattern(DType dtype, float scale);
  Tensor allocate(DType dtype, const Shape& shape);

  std::unique_ptr<Device> device_;
  std::unique_ptr<Stream> stream_;
  std::vector<Buffer> buffers_;
  std::map<std::pair<DType, float>, std::vector<std::byte>> patterns_;  // by scale
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
std::vector<GpuCase> exchange_cases();
std::vector<GpuCase> expert_cases();
std::vector<GpuCase> gemm_cases();
std::vector<GpuCase> loss_cases();
std::vector<GpuCase> moe_cases();
std::vector<GpuCase> optimizer_cases();
std::vector<GpuCase> picture_cases();
std::vector<GpuCase> row_cases();
std::vector<GpuCase> table_cases();

// All of them, of which `filter` is a part of the name.
std::vector<GpuCase> gpu_cases(const std::string& filter = "");

}  // namespace orchard::bench
