// Memory of a CUDA device, kept by CUDA's pool once it has been allocated: cudaFree would make the
// host wait for the whole GPU, and the next cudaMalloc map the pages again.
#pragma once

#include <cstddef>

#include "kernels/cuda/streams.h"

namespace orchard::cuda {

class MemoryPool {
 public:
  // `streams`: of the device, those that may use its memory.
  MemoryPool(Device& device, int ordinal, const std::vector<CudaStream*>& streams);
  ~MemoryPool();
  MemoryPool(const MemoryPool&) = delete;
  MemoryPool& operator=(const MemoryPool&) = delete;

  // Usable on every stream at once. Waits for the streams where what it gives out was freed while
  // they still used it: allocate while a program warms up.
  std::byte* allocate(std::size_t bytes);
  // In stream order: what is queued on any stream may still use the memory.
  void free(std::byte* data) noexcept;

 private:
  const std::vector<CudaStream*>& streams_;
  cudaStream_t stream_ = nullptr;  // of allocations and frees alone
  CudaEvent queued_;
};

}  // namespace orchard::cuda
