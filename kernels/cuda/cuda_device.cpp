#include "kernels/cuda/cuda_device.h"

#include <algorithm>

#include "kernels/cuda/cuda_stream.h"
#include "kernels/gpu/gpu_properties.h"

namespace orchard {
namespace cuda {
namespace {

class CudaStream final : public Stream {
 public:
  explicit CudaStream(Device& device) : Stream(device) {
    check(cudaStreamCreateWithFlags(&handle_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  }
  ~CudaStream() override {
    // The workspace is freed next, and queued kernels may still use it.
    cudaStreamSynchronize(handle_);
    cudaStreamDestroy(handle_);
  }

  void synchronize() override { check(cudaStreamSynchronize(handle_), "cudaStreamSynchronize"); }

  void copy(Tensor destination, ConstTensor source) override {
    require(destination.dtype() == source.dtype() && destination.numel() == source.numel(),
            "copy of {} {} into {} {}", name_of(source.dtype()), source.shape(),
            name_of(destination.dtype()), destination.shape());
    if (!source.numel()) return;
    check(cudaMemcpyAsync(destination.raw(), source.raw(), source.size_bytes(), cudaMemcpyDefault,
                          handle_),
          "cudaMemcpyAsync of {} bytes from {} to {}", source.size_bytes(),
          name_of(source.device()), name_of(destination.device()));
  }

  void fill_zero(Tensor destination) override {
    if (!destination.numel()) return;
    check(cudaMemsetAsync(destination.raw(), 0, destination.size_bytes(), handle_),
          "cudaMemsetAsync of {} bytes", destination.size_bytes());
  }

  cudaStream_t handle() const { return handle_; }

 private:
  cudaStream_t handle_ = nullptr;
};

GpuProperties properties(int ordinal) {
  const auto attribute = [&](cudaDeviceAttr which) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, which, ordinal), "cudaDeviceGetAttribute");
    return value;
  };
  return {.compute_capability = 10 * attribute(cudaDevAttrComputeCapabilityMajor) +
                                attribute(cudaDevAttrComputeCapabilityMinor),
          .multiprocessors = attribute(cudaDevAttrMultiProcessorCount)};
}

class CudaDevice final : public Device {
 public:
  explicit CudaDevice(int ordinal) : Device(DeviceKind::cuda) {
    int count = 0;
    check(cudaGetDeviceCount(&count), "no CUDA device: cudaGetDeviceCount");
    require(ordinal >= 0 && ordinal < count, "CUDA device {} does not exist: there are {}", ordinal,
            count);
    check(cudaSetDevice(ordinal), "cudaSetDevice({})", ordinal);
    extension<GpuProperties>() = properties(ordinal);
    register_operations(operations());
  }
  std::unique_ptr<Stream> make_stream() override { return std::make_unique<CudaStream>(*this); }

 private:
  std::byte* allocate_bytes(std::size_t bytes) override {
    void* data = nullptr;
    // cudaMalloc(0) gives a null pointer, which would read as an absent tensor.
    check(cudaMalloc(&data, std::max<std::size_t>(bytes, 1)), "cudaMalloc of {} bytes", bytes);
    return static_cast<std::byte*>(data);
  }
  void free_bytes(std::byte* data, std::size_t) noexcept override { cudaFree(data); }
};

}  // namespace

cudaStream_t native_stream(Stream& stream) {
  require(stream.device().kind() == DeviceKind::cuda,
          "a CUDA kernel was launched on a stream of device {}", name_of(stream.device().kind()));
  return static_cast<CudaStream&>(stream).handle();
}

}  // namespace cuda

int cuda_device_count() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

std::unique_ptr<Device> make_cuda_device(int ordinal) {
  return std::make_unique<cuda::CudaDevice>(ordinal);
}

}  // namespace orchard
