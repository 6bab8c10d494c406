// CUDA's side of kernels/gpu/gpu.h: what the language lacks, as thin wrappers.
#pragma once

#include <cuda_runtime.h>

#include "kernels/core/dtype.h"
#include "kernels/cuda/cuda_stream.h"

namespace orchard::cuda {

// The block's dynamic shared memory. The launch must ask for at least sizeof(Storage).
template <class Storage>
__device__ __forceinline__ Storage& shared_storage() {
  extern __shared__ __align__(1024) unsigned char shared_bytes[];
  return *reinterpret_cast<Storage*>(shared_bytes);
}

template <class T>
__device__ __forceinline__ T load(const T* address) {
  return *address;
}

// Through the read-only path: for memory that nothing writes while the kernel runs.
template <class T>
__device__ __forceinline__ T load_readonly(const T* address) {
  return __ldg(address);
}
__device__ __forceinline__ bf16 load_readonly(const bf16* address) {
  return {__ldg(&address->bits)};
}

template <class T>
__device__ __forceinline__ void store(T* address, const T& value) {
  *address = value;
}

template <class T>
__device__ __forceinline__ T load_shared(const T* address) {
  return *address;
}

template <class T>
__device__ __forceinline__ void store_shared(T* address, const T& value) {
  *address = value;
}

// The address of shared memory as instructions take it.
__device__ __forceinline__ unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

// Queues the kernel on a CUDA stream.
template <class... Parameters, class... Arguments>
void launch(Stream& stream, const LaunchShape& shape, void (*kernel)(Parameters...),
            Arguments&&... arguments) {
  // What a kernel may use without being asked for by name.
  constexpr std::size_t default_shared_limit = 48 * 1024;
  if (shape.shared_bytes > default_shared_limit)
    allow_shared_bytes(reinterpret_cast<const void*>(kernel), shape);
  cudaLaunchConfig_t config{};
  config.gridDim = {shape.grid.x, shape.grid.y, shape.grid.z};
  config.blockDim = {shape.block.x, shape.block.y, shape.block.z};
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = native_stream(stream);
  cudaLaunchAttribute attributes[2];
  config.attrs = attributes;
  if (shape.cluster.volume() > 1) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {shape.cluster.x, shape.cluster.y, shape.cluster.z};
  }
  if (shape.residency == Residency::whole_grid) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
  }
  launched(stream, shape,
           cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
}

}  // namespace orchard::cuda
