// What the norms of the CUDA and SIMT backends have in common: how a row is shared by threads, and
// sums over it.
#pragma once

#include <cstdint>

#include "kernels/core/tensor.h"
#include "kernels/device/operation_table.h"
#include "kernels/gpu/gpu.h"
#include "kernels/gpu/warp.h"

namespace orchard::GPU_NAMESPACE {

void register_norm_forward(OperationTable&);
void register_norm_backward(OperationTable&);
void register_qk_norm_rope(OperationTable&);

// RMSNorm is LayerNorm without mean and bias.
enum class Norm : std::uint8_t { rms, layer };

// Threads of a block: one row's, but at least four warps, so that the 32 blocks an SM can hold
// do not limit how many warps it holds.
constexpr int block_threads(int threads_per_row) {
  return threads_per_row < 128 ? 128 : threads_per_row;
}

// One float of each warp, twice: two sums in turn need one barrier each.
template <int threads>
struct RowSums {
  float warp[2][block_threads(threads) / 32];
};

// The sum over the `threads` threads of a row, in each of them. Calls take `buffer` 0 and 1 in turn;
// the threads of the block call together where a row has more than a warp.
template <int threads>
__device__ float row_sum(float value, RowSums<threads>& sums, int buffer) {
  value = warp_sum(value);
  if constexpr (threads > 32) {
    if (threadIdx.x % 32 == 0) sums.warp[buffer][threadIdx.x / 32] = value;
    __syncthreads();
    const unsigned first = threadIdx.x / threads * (threads / 32);
    value = 0;
    for (unsigned i = 0; i < threads / 32; ++i) value += sums.warp[buffer][first + i];
  }
  return value;
}

// A row in registers is `threads` threads with `vectors` accesses of 16 bytes each.
template <class Kernel>
struct RowVariant {
  int capacity;  // vectors of the longest row
  int threads_per_row;
  std::size_t shared_bytes;
  Kernel kernel;
};

// The kernels count rows and columns of x in 31 bits.
inline void require_countable(const ConstTensor& x) {
  constexpr std::int64_t limit = std::int64_t{1} << 31;
  require(x.dim(0) < limit && x.dim(1) < limit,
          "a norm of {} has more rows or columns than its GPU kernel counts (2^31)", x.shape());
}

// Rows of any length and alignment: a block each.
constexpr int any_row_threads = 256;

}  // namespace orchard::GPU_NAMESPACE
