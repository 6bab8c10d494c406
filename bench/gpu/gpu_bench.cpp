#include "bench/gpu/gpu_bench.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "kernels/cuda/call.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_stream.h"

namespace orchard::bench {
namespace {

using cuda::call;

constexpr std::size_t pattern_elements = std::size_t{1} << 22;

struct Event {
  cudaEvent_t handle = nullptr;
  Event() { call("cudaEventCreate", cudaEventCreate, &handle); }
  ~Event() { cudaEventDestroy(handle); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
};

cudaDeviceProp properties() {
  int ordinal = 0;
  call("cudaGetDevice", cudaGetDevice, &ordinal);
  cudaDeviceProp result{};
  call("cudaGetDeviceProperties", cudaGetDeviceProperties, &result, ordinal);
  return result;
}

}  // namespace

GpuBench::GpuBench() : device_(make_cuda_device()), stream_(device_->make_stream()) {
  flush_ = device_->allocate(2 * static_cast<std::size_t>(properties().l2CacheSize));
}

Tensor GpuBench::allocate(DType dtype, const Shape& shape) {
  buffers_.push_back(device_->allocate(static_cast<std::size_t>(shape.numel()) * size_of(dtype)));
  return buffers_.back().tensor(dtype, shape);
}

// Making numbers takes the host longer than the GPU takes to compute with them: all operands are of one
// pattern, each from another place on.
const std::vector<std::byte>& GpuBench::pattern(DType dtype, float scale) {
  std::vector<std::byte>& pattern = patterns_[{dtype, scale}];
  if (!pattern.empty()) return pattern;
  pattern.resize(pattern_elements * size_of(dtype));
  std::mt19937 engine(1);
  std::normal_distribution<float> normal(0, scale);
  for (std::size_t i = 0; i < pattern_elements; ++i) {
    const float value = normal(engine);
    if (dtype == DType::f32) {
      reinterpret_cast<float*>(pattern.data())[i] = value;
    } else {
      reinterpret_cast<bf16*>(pattern.data())[i] = to_bf16(value);
    }
  }
  return pattern;
}

Tensor GpuBench::random(DType dtype, const Shape& shape, float scale) {
  const std::vector<std::byte>& numbers = pattern(dtype, scale);
  const Tensor out = allocate(dtype, shape);
  auto* const data = static_cast<std::byte*>(out.raw());
  std::size_t from = buffers_.size() * 99991 % pattern_elements * size_of(dtype);
  for (std::size_t at = 0; at < out.size_bytes();) {
    const std::size_t bytes = std::min(numbers.size() - from, out.size_bytes() - at);
    call("cudaMemcpy", cudaMemcpy, data + at, numbers.data() + from, bytes, cudaMemcpyHostToDevice);
    at += bytes;
    from = 0;
  }
  return out;
}

Tensor GpuBench::integers(const std::vector<std::int32_t>& values) {
  const Tensor out = allocate(DType::i32, {static_cast<std::int64_t>(values.size())});
  call("cudaMemcpy", cudaMemcpy, out.raw(), values.data(), out.size_bytes(),
       cudaMemcpyHostToDevice);
  return out;
}

Tensor GpuBench::zeros(DType dtype, const Shape& shape) {
  const Tensor out = allocate(dtype, shape);
  call("cudaMemset", cudaMemset, out.raw(), 0, out.size_bytes());
  return out;
}

Tensor GpuBench::bytes(std::int64_t count) {
  return allocate(DType::u8, {count});
}

double GpuBench::median_us(const std::function<void()>& measured) {
  constexpr int warm_up = 3, calls = 30;
  const cudaStream_t stream = cuda::native_stream(*stream_);
  std::vector<float> milliseconds;
  const Event start, stop;
  for (int i = 0; i < warm_up + calls; ++i) {
    call("cudaMemsetAsync", cudaMemsetAsync, flush_.data(), i, flush_.size_bytes(), stream);
    call("cudaEventRecord", cudaEventRecord, start.handle, stream);
    measured();
    call("cudaEventRecord", cudaEventRecord, stop.handle, stream);
    stream_->synchronize();
    float elapsed = 0;
    call("cudaEventElapsedTime", cudaEventElapsedTime, &elapsed, start.handle, stop.handle);
    if (i >= warm_up) milliseconds.push_back(elapsed);
  }
  std::nth_element(milliseconds.begin(), milliseconds.begin() + calls / 2, milliseconds.end());
  return 1e3 * static_cast<double>(milliseconds[calls / 2]);
}

std::string GpuBench::description() const {
  const cudaDeviceProp p = properties();
  int driver = 0;
  call("cudaDriverGetVersion", cudaDriverGetVersion, &driver);
  return fmt::format("{}, sm_{}{}, {} SMs, driver for CUDA {}.{}", p.name, p.major, p.minor,
                     p.multiProcessorCount, driver / 1000, driver % 1000 / 10);
}

}  // namespace orchard::bench
