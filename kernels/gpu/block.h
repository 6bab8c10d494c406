// Sums over the threads of a block, and the last step of sums over a grid: blocks leave partial
// sums, one block adds them. The shape of a sum depends on sizes alone, never on the GPU or on
// timing: the same bits every time. No atomics.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/device/stream.h"
#include "kernels/gpu/gpu.h"
#include "kernels/gpu/warp.h"

namespace orchard::GPU_NAMESPACE {

template <class T, int threads>
struct BlockSum {
  T warps[threads / 32];
};

// The sum over the block's `threads` threads, in each of them. All must call it; `shared` must not
// be in use.
template <int threads, class T>
__device__ T block_sum(T value, BlockSum<T, threads>& shared) {
  value = warp_sum(value);
  if (threadIdx.x % 32 == 0) shared.warps[threadIdx.x / 32] = value;
  __syncthreads();
  T total = 0;
  for (int warp = 0; warp < threads / 32; ++warp) total += shared.warps[warp];
  return total;
}

constexpr int final_threads = 512;

// One block adds partials[0 .. count) in fp64 and gives the total to finish(total).
template <class Partial, class Finish>
__global__ void __launch_bounds__(final_threads)
    sum_in_one_block(const Partial* partials, std::int64_t count, Finish finish) {
  auto& shared = shared_storage<BlockSum<double, final_threads>>();
  double mine = 0;
  for (std::int64_t i = threadIdx.x; i < count; i += final_threads) mine += load(partials + i);
  const double total = block_sum<final_threads>(mine, shared);
  if (threadIdx.x == 0) finish(total);
}

template <class Partial, class Finish>
void launch_final_sum(Stream& stream, const Partial* partials, std::int64_t count,
                      const Finish& finish) {
  launch(stream,
         {.kernel = "sum_in_one_block",
          .block = {final_threads},
          .shared_bytes = sizeof(BlockSum<double, final_threads>)},
         sum_in_one_block<Partial, Finish>, partials, count, finish);
}

}  // namespace orchard::GPU_NAMESPACE
