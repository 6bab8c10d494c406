// Softmax cross-entropy on GPUs, from sm_80 on: a block per row of logits. One pass finds the maximum
// and the sum of the exponentials together (a sum so far is scaled when the maximum grows), a second
// one writes the gradient.
//
// Bytes: 4 per logit, and 4 (f32) or 2 (bf16) per gradient; 2 exponentials and about 10 FLOPs a logit.
// Bound: HBM bandwidth. What fits of the row waits in shared memory for the second pass; the rest is
// read again, soon after the first time, which the L2 cache serves. 96 KB of shared memory a block
// exist on every GPU, and leave room for two blocks on an SM of an H100: while one is between its
// passes the other keeps memory busy.
#include <cstdint>
#include <limits>

#include "kernels/core/visit.h"
#include "kernels/device/device.h"
#include "kernels/gpu/block.h"
#include "kernels/gpu/gpu.h"
#include "kernels/gpu/register.h"
#include "kernels/gpu/values.h"
#include "kernels/loss/loss.h"

namespace orchard::GPU_NAMESPACE {
namespace {

constexpr int loss_threads = 512;
constexpr int cached_logits = 24 * 1024 - 64;

struct LossStorage {
  alignas(16) float row[cached_logits];
  BlockSum<float, loss_threads> maxima, sums;
};
static_assert(sizeof(LossStorage) <= 96 * 1024);

template <class Gradient>
struct Loss {
  const float* logits;  // [rows, vocab]
  const int* targets;   // [rows]
  float* losses;        // [rows]
  Gradient* d_logits;   // [rows, vocab], or nullptr; may be logits
  std::int64_t vocab;
  float scale;
};

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
__device__ float block_maximum(float value, BlockSum<float, loss_threads>& shared) {
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

template <class Gradient, int width>
__global__ void __launch_bounds__(loss_threads) cross_entropy(Loss<Gradient> op) {
  auto& shared = shared_storage<LossStorage>();
  const std::int64_t row = blockIdx.x;
  const float* const logits = op.logits + row * op.vocab;
  Gradient* const d_logits = op.d_logits == nullptr ? nullptr : op.d_logits + row * op.vocab;
  const int target = load(op.targets + row);
  if (target < 0 || target >= op.vocab) {
    if (d_logits != nullptr) write_zeros<Gradient, width>(d_logits, op.vocab);
    constexpr float wrong = std::numeric_limits<float>::quiet_NaN();
    if (threadIdx.x == 0) store(op.losses + row, target == -1 ? 0.0f : wrong);
    return;
  }
  // Before the barriers, behind which the gradient may overwrite it.
  const float target_logit = threadIdx.x == 0 ? load(logits + target) : 0.0f;

  constexpr int at_once = 4, step = loss_threads * width;
  RunningSum running;
  for (std::int64_t i = threadIdx.x * width; i < op.vocab; i += at_once * step) {
    Values<width> held[at_once];
#pragma unroll
    for (int k = 0; k < at_once; ++k) {
      if (i + k * step < op.vocab) held[k] = load_values<width>(logits + i + k * step);
    }
#pragma unroll
    for (int k = 0; k < at_once; ++k) {
      const std::int64_t at = i + k * step;
      if (at >= op.vocab) continue;
      running.add(held[k]);
      if (d_logits != nullptr && at < cached_logits) store_values(shared.row + at, held[k]);
    }
  }
  const float maximum = block_maximum(running.maximum, shared.maxima);
  const float sum =
      block_sum<loss_threads>(running.sum * expf(running.maximum - maximum), shared.sums);
  if (threadIdx.x == 0) store(op.losses + row, maximum - target_logit + logf(sum));
  if (d_logits == nullptr) return;

  const float factor = op.scale / sum;
  const auto write_gradient = [&](std::int64_t i, const Values<width>& x) {
    Values<width> gradient;
#pragma unroll
    for (int e = 0; e < width; ++e) {
      gradient[e] = expf(x[e] - maximum) * factor - (i + e == target ? op.scale : 0.0f);
    }
    store_values(d_logits + i, gradient);
  };
  // Each thread meets the elements that it read itself: no barrier stands between them.
  std::int64_t i = threadIdx.x * width;
  for (; i < cached_logits && i < op.vocab; i += step) {
    write_gradient(i, load_values<width>(shared.row + i));
  }
  for (; i < op.vocab; i += step) write_gradient(i, load_values<width>(logits + i));
}

template <class Gradient>
void run_cross_entropy(Stream& stream, const CrossEntropy& op) {
  const Loss<Gradient> loss{.logits = op.logits.data<float>(),
                            .targets = op.targets.data<std::int32_t>(),
                            .losses = op.losses.data<float>(),
                            .d_logits = op.d_logits ? op.d_logits.data<Gradient>() : nullptr,
                            .vocab = op.logits.dim(1),
                            .scale = op.scale};
  const std::int64_t rows = op.logits.dim(0);
  if (rows == 0) return;
  constexpr int width = per_vector<float>;
  static_assert(cached_logits % width == 0, "no vector may be cached in part");
  const bool vectors = loss.vocab % width == 0 && all_aligned(16, {loss.logits}) &&
                       all_aligned(width * sizeof(Gradient), {loss.d_logits});
  launch(stream,
         {.kernel = "cross_entropy",
          .grid = {static_cast<unsigned>(rows)},
          .block = {loss_threads},
          .shared_bytes = sizeof(LossStorage)},
         vectors ? cross_entropy<Gradient, width> : cross_entropy<Gradient, 1>, loss);
}

}  // namespace

void register_loss(OperationTable& table) {
  table.add<CrossEntropy>([](Stream& stream, const CrossEntropy& op) {
    // An absent gradient says f32.
    visit_float(op.d_logits.dtype(), [&]<class T>(T) { run_cross_entropy<T>(stream, op); });
  });
}

}  // namespace orchard::GPU_NAMESPACE
