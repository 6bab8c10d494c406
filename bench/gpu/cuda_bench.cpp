#include "bench/gpu/cuda_bench.h"

#include <algorithm>

#include "kernels/cuda/call.h"
#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_stream.h"
#include "kernels/cuda/cudnn.h"

namespace orchard::bench {
namespace {

using cuda::call;

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

CudaBench::CudaBench() : GpuBench(make_cuda_device()) {
  flush_ = device().allocate(2 * static_cast<std::size_t>(properties().l2CacheSize));
}

double CudaBench::median_us(const std::function<void()>& measured) {
  constexpr int warm_up = 3, calls = 30;
  const cudaStream_t native = cuda::native_stream(stream());
  std::vector<float> milliseconds;
  const Event start, stop;
  for (int i = 0; i < warm_up + calls; ++i) {
    call("cudaMemsetAsync", cudaMemsetAsync, flush_.data(), i, flush_.size_bytes(), native);
    call("cudaEventRecord", cudaEventRecord, start.handle, native);
    measured();
    call("cudaEventRecord", cudaEventRecord, stop.handle, native);
    stream().synchronize();
    float elapsed = 0;
    call("cudaEventElapsedTime", cudaEventElapsedTime, &elapsed, start.handle, stop.handle);
    if (i >= warm_up) milliseconds.push_back(elapsed);
  }
  std::nth_element(milliseconds.begin(), milliseconds.begin() + calls / 2, milliseconds.end());
  return 1e3 * static_cast<double>(milliseconds[calls / 2]);
}

std::string CudaBench::description() const {
  const cudaDeviceProp p = properties();
  int driver = 0;
  call("cudaDriverGetVersion", cudaDriverGetVersion, &driver);
  return fmt::format("{}, sm_{}{}, {} SMs, driver for CUDA {}.{}", p.name, p.major, p.minor,
                     p.multiProcessorCount, driver / 1000, driver % 1000 / 10);
}

bool CudaBench::run_library(const Gemm& op) {
  return cuda::cublaslt_absence().empty() && cuda::run_library(stream(), op);
}
bool CudaBench::run_library(const DepthwiseConv3x3Forward& op) {
  return cuda::cudnn_absence().empty() && cuda::run_library(stream(), op);
}
bool CudaBench::run_library(const DepthwiseConv3x3BackwardInput& op) {
  return cuda::cudnn_absence().empty() && cuda::run_library(stream(), op);
}

}  // namespace orchard::bench
