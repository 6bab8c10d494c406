#include "kernels/cuda/memory_pool.h"

#include <algorithm>
#include <limits>

namespace orchard::cuda {

MemoryPool::MemoryPool(Device& device, int ordinal, const std::vector<CudaStream*>& streams)
    : streams_(streams), queued_(device) {
  cudaMemPool_t pool = nullptr;
  call("cudaDeviceGetDefaultMemPool", cudaDeviceGetDefaultMemPool, &pool, ordinal);
  // Nothing goes back to the driver before the process ends.
  std::uint64_t kept_bytes = std::numeric_limits<std::uint64_t>::max();
  call("cudaMemPoolSetAttribute", cudaMemPoolSetAttribute, pool, cudaMemPoolAttrReleaseThreshold,
       static_cast<void*>(&kept_bytes));
  call("cudaStreamCreateWithFlags", cudaStreamCreateWithFlags, &stream_,
       static_cast<unsigned>(cudaStreamNonBlocking));
}

MemoryPool::~MemoryPool() {
  cudaStreamSynchronize(stream_);
  cudaStreamDestroy(stream_);
}

std::byte* MemoryPool::allocate(std::size_t bytes) {
  void* data = nullptr;
  // An allocation of nothing gives a null pointer, which would read as an absent tensor.
  call("cudaMallocAsync", cudaMallocAsync, &data, std::max<std::size_t>(bytes, 1), stream_);
  call("cudaStreamSynchronize", cudaStreamSynchronize, stream_);
  return static_cast<std::byte*>(data);
}

// An error here is one that the streams report, too.
void MemoryPool::free(std::byte* data) noexcept {
  for (const CudaStream* const stream : streams_) {
    cudaEventRecord(queued_.handle(), stream->handle());
    cudaStreamWaitEvent(stream_, queued_.handle(), 0);
  }
  cudaFreeAsync(data, stream_);
}

}  // namespace orchard::cuda
