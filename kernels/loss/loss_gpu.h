// A row of logits on a GPU: one pass finds the maximum and the sum of the exponentials together (a sum
// so far is scaled when the maximum grows), a second one makes something of each logit.
//
// What fits of the row waits in shared memory for the second pass; the rest is read again, soon after
// the first time, which the L2 cache serves. 96 KB of shared memory a block exist on every GPU, and
// leave room for two blocks on an SM of an H100: while one is between its passes the other keeps
// memory busy.
#pragma once

#include <cstdint>
#include <limits>

#include "kernels/device/operation_table.h"
#include "kernels/gpu/block.h"
#include "kernels/gpu/gpu.h"
#include "kernels/gpu/values.h"

namespace orchard::GPU_NAMESPACE {

void register_sharded_loss(OperationTable&);

constexpr int loss_threads = 512;
constexpr int cached_logits = 24 * 1024 - 64;

struct LossStorage {
  alignas(16) float row[cached_logits];
  BlockSum<float, loss_threads> maxima, sums;
};
static_assert(sizeof(LossStorage) <= 96 * 1024);

// Σ exp(x - maximum) over what was added so far. The maximum is finite from the start, so that
// masked tokens (-inf) do not meet -inf - -inf.
struct RunningSum {
  float maximum = std::numeric_limits<float>::lowest();
  float sum = 0;

  template <int n>
  __device__ void add(const Values<n>& values) {
    float larger = maximum;
#pragma unroll
    for (int i = 0; i < n; ++i) larger = fmaxf(larger, values[i]);  // passes over a NaN
    sum *= expf(maximum - larger);
    maximum = larger;
#pragma unroll
    for (int i = 0; i < n; ++i) sum += expf(values[i] - maximum);
  }
};

// The maximum over the block's threads, in each of them.
__device__ inline float block_maximum(float value, BlockSum<float, loss_threads>& shared) {
  for (int distance = 16; distance > 0; distance /= 2) {
    value = fmaxf(value, __shfl_xor_sync(all_lanes, value, distance));
  }
  if (threadIdx.x % 32 == 0) shared.warps[threadIdx.x / 32] = value;
  __syncthreads();
  for (const float other : shared.warps) value = fmaxf(value, other);
  return value;
}

template <class Gradient, int width>
__device__ void write_zeros(Gradient* row, std::int64_t vocab) {
  for (std::int64_t i = threadIdx.x * width; i < vocab; i += loss_threads * width) {
    store_values(row + i, Values<width>{});
  }
}

enum class Caching : std::uint8_t { no, yes };

struct RowSum {
  float maximum;
  float sum;  // Σ exp(x - maximum)
};

// Of the row, in every thread of the block; all of them call it.
template <int width>
__device__ RowSum sum_row(const float* row, std::int64_t count, Caching caching,
                          LossStorage& shared) {
  static_assert(cached_logits % width == 0, "no vector may be cached in part");
  constexpr int at_once = 4, step = loss_threads * width;
  RunningSum running;
  for (std::int64_t i = threadIdx.x * width; i < count; i += at_once * step) {
    Values<width> held[at_once];
#pragma unroll
    for (int k = 0; k < at_once; ++k) {
      if (i + k * step < count) held[k] = load_values<width>(row + i + k * step);
    }
#pragma unroll
    for (int k = 0; k < at_once; ++k) {
      const std::int64_t at = i + k * step;
      if (at >= count) continue;
      running.add(held[k]);
      if (caching == Caching::yes && at < cached_logits) store_values(shared.row + at, held[k]);
    }
  }
  const float maximum = block_maximum(running.maximum, shared.maxima);
  return {maximum,
          block_sum<loss_threads>(running.sum * expf(running.maximum - maximum), shared.sums)};
}

// The second pass, after a sum_row that cached: use(i, elements [i, i + width)). Each thread meets
// the elements that it read itself: no barrier stands between them, and `use` may write to the row.
template <int width, class Use>
__device__ void for_each_again(const float* row, std::int64_t count, const LossStorage& shared,
                               const Use& use) {
  constexpr int at_once = 4;
  constexpr std::int64_t step = loss_threads * width;
  const std::int64_t first = threadIdx.x * width;
  if (first >= count) return;
  // Backwards: what was read last is in the L2 cache before other rows push it out.
  std::int64_t i = first + (count - 1 - first) / step * step;
  for (; i - (at_once - 1) * step >= cached_logits; i -= at_once * step) {
    Values<width> held[at_once];
#pragma unroll
    for (int k = 0; k < at_once; ++k) held[k] = load_values<width>(row + i - k * step);
#pragma unroll
    for (int k = 0; k < at_once; ++k) use(i - k * step, held[k]);
  }
  for (; i >= cached_logits; i -= step) use(i, load_values<width>(row + i));
  for (; i >= 0; i -= step) use(i, load_values<width>(shared.row + i));
}

}  // namespace orchard::GPU_NAMESPACE
