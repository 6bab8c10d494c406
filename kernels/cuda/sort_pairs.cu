// Sorts of pairs by NVIDIA's CUB, which the CUDA toolkit brings as headers.
//
// Bytes: CUB sorts by 8 bits a pass (one pass: Adinets and Merrill, "Onesweep", 2022). It reads all keys once
// to count the digits of every pass, and each pass reads and writes every pair: 4 + 16 · ceil(bits / 8) a pair.
// What one block holds, 4864 pairs, is sorted in one launch: 16 a pair.
#include <cub/device/device_radix_sort.cuh>

#include "kernels/cuda/cuda_stream.h"
#include "kernels/cuda/streams.h"
#include "kernels/gpu/sort_pairs.h"

namespace orchard::cuda {
namespace {

// CUB's function, with a pointer for its reference: call_after passes arguments by value.
cudaError_t radix_sort(std::byte* scratch, std::size_t* scratch_bytes, const std::int32_t* keys,
                       std::int32_t* sorted_keys, const std::int32_t* values,
                       std::int32_t* sorted_values, int items, int bits, cudaStream_t stream) {
  // CUB reports the thread's last error as its own. It may be one that an earlier call has left and answered for:
  // to ask for an event that is not done leaves one (CudaEvent::is_done).
  cudaGetLastError();
  return cub::DeviceRadixSort::SortPairs(scratch, *scratch_bytes, keys, sorted_keys, values,
                                         sorted_values, items, 0, bits, stream);
}

// Without scratch CUB only writes how many bytes it wants.
void call_radix_sort(const LaunchLog& launches, cudaStream_t stream, const SortPairs& sort,
                     std::byte* scratch, std::size_t* scratch_bytes) {
  call_after(launches, "cub::DeviceRadixSort::SortPairs", radix_sort, scratch, scratch_bytes,
             sort.keys, sort.sorted_keys, sort.values, sort.sorted_values, sort.items, sort.bits,
             stream);
}

}  // namespace

std::size_t sort_scratch_bytes(int items, int bits) {
  std::size_t bytes = 0;
  call_radix_sort(LaunchLog(), nullptr, {.items = items, .bits = bits}, nullptr, &bytes);
  return bytes;
}

void sort_pairs(Stream& stream, const SortPairs& sort, std::byte* scratch) {
  const cudaStream_t handle = native_stream(stream);  // of a CUDA device, or this throws
  std::size_t bytes = sort_scratch_bytes(sort.items, sort.bits);
  call_radix_sort(static_cast<CudaStream&>(stream).launches(), handle, sort, scratch, &bytes);
}

}  // namespace orchard::cuda
