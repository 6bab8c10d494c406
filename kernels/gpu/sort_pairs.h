// The sort off the hot path: CUB's on a GPU (kernels/cuda/sort_pairs.cu); on the emulator the host sorts in
// its place (kernels/simt/library_sort.cpp). What every layer sorts has a kernel of ours
// (kernels/gpu/counting_sort.h).
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/device/stream.h"

namespace orchard {

// Pairs of a key and a value in rising order of their keys; those of equal keys keep the order they had. No two
// of the arrays may overlap, nor the scratch any of them.
struct SortPairs {
  int items = 0;
  int bits = 31;                          // 1 to 31, which hold every key; none is negative
  const std::int32_t* keys = nullptr;     // [items]
  const std::int32_t* values = nullptr;   // [items]
  std::int32_t* sorted_keys = nullptr;    // [items]
  std::int32_t* sorted_values = nullptr;  // [items]
};

// Each in the library of its kernels: a kernel file's namespace finds its own.
namespace cuda {

// Bytes of the scratch: a workspace is one request, so whoever has his arrays there asks for both at once.
std::size_t sort_scratch_bytes(int items, int bits);

// Queues the sort.
void sort_pairs(Stream& stream, const SortPairs& sort, std::byte* scratch);

}  // namespace cuda
namespace simt {

std::size_t sort_scratch_bytes(int items, int bits);
void sort_pairs(Stream& stream, const SortPairs& sort, std::byte* scratch);

}  // namespace simt
}  // namespace orchard
