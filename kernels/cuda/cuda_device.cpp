#include "kernels/cuda/cuda_device.h"

#include "kernels/cuda/availability.h"
#include "kernels/cuda/memory_pool.h"
#include "kernels/gpu/gpu_properties.h"

namespace orchard {
namespace cuda {
namespace {

class CudaDevice final : public Device {
 public:
  explicit CudaDevice(int ordinal) : Device(DeviceKind::cuda) {
    const Availability found = find_availability(ordinal);
    const std::string absence = absence_of_gpu(found);
    require(absence.empty(), "--device cuda: {}", absence);
    call("cudaSetDevice", cudaSetDevice, ordinal);
    extension<GpuProperties>() = {
        .compute_capability = found.compute_capability,
        .multiprocessors = attribute_of_device(cudaDevAttrMultiProcessorCount, ordinal),
        .shared_bytes = static_cast<std::size_t>(
            attribute_of_device(cudaDevAttrMaxSharedMemoryPerBlockOptin, ordinal))};
    pool_ = std::make_unique<MemoryPool>(*this, ordinal, streams_);
    register_operations(operations());
  }
  std::unique_ptr<Stream> make_stream() override {
    return std::make_unique<CudaStream>(*this, streams_);
  }
  std::unique_ptr<Event> make_event() override { return std::make_unique<CudaEvent>(*this); }
  std::unique_ptr<Graph> capture(Stream& stream, std::function<void()> work) override {
    return static_cast<CudaStream&>(stream).capture(work);
  }

 private:
  std::byte* allocate_bytes(std::size_t bytes) override { return pool_->allocate(bytes); }
  void free_bytes(std::byte* data, std::size_t) noexcept override { pool_->free(data); }
  std::byte* allocate_host_bytes(std::size_t bytes) override {
    void* data = nullptr;
    call("cudaMallocHost", cudaMallocHost, &data, bytes);
    return static_cast<std::byte*>(data);
  }
  void free_host_bytes(std::byte* data) noexcept override { cudaFreeHost(data); }

  std::vector<CudaStream*> streams_;
  std::unique_ptr<MemoryPool> pool_;
};

}  // namespace
}  // namespace cuda

int cuda_device_count() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

std::unique_ptr<Device> make_cuda_device(int ordinal) {
  return std::make_unique<cuda::CudaDevice>(ordinal);
}

}  // namespace orchard
