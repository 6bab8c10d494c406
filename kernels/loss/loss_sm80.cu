// Softmax cross-entropy on GPUs, from sm_80 on: a block per row of logits, in two passes
// (kernels/loss/loss_gpu.h), of which the second writes the gradient.
//
// Bytes: 4 per logit, and 4 (f32) or 2 (bf16) per gradient; 2 exponentials and about 10 FLOPs a logit.
// Bound: HBM bandwidth.
#include <cstdint>
#include <limits>

#include "kernels/core/visit.h"
#include "kernels/device/stream.h"
#include "kernels/gpu/number.h"
#include "kernels/gpu/register.h"
#include "kernels/loss/loss.h"
#include "kernels/loss/loss_gpu.h"

namespace orchard::GPU_NAMESPACE {
namespace {

template <class Gradient>
struct Loss {
  const float* logits;  // [rows, vocab]
  const int* targets;   // [rows]
  float* losses;        // [rows]
  Gradient* d_logits;   // [rows, vocab], or nullptr; may be logits
  const float* scale;   // [1], or nullptr
  std::int64_t vocab;
};

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

  const RowSum total =
      sum_row<width>(logits, op.vocab, d_logits != nullptr ? Caching::yes : Caching::no, shared);
  if (threadIdx.x == 0) store(op.losses + row, total.maximum - target_logit + logf(total.sum));
  if (d_logits == nullptr) return;

  const float scale = number_or(op.scale, 1), factor = scale / total.sum;
  for_each_again<width>(logits, op.vocab, shared, [&](std::int64_t i, const Values<width>& x) {
    Values<width> gradient;
#pragma unroll
    for (int e = 0; e < width; ++e) {
      gradient[e] = expf(x[e] - total.maximum) * factor - (i + e == target ? scale : 0.0f);
    }
    store_values(d_logits + i, gradient);
  });
}

template <class Gradient>
void run_cross_entropy(Stream& stream, const CrossEntropy& op) {
  const Loss<Gradient> loss{.logits = op.logits.data<float>(),
                            .targets = op.targets.data<std::int32_t>(),
                            .losses = op.losses.data<float>(),
                            .d_logits = op.d_logits ? op.d_logits.data<Gradient>() : nullptr,
                            .scale = op.scale.data<float>(),
                            .vocab = op.logits.dim(1)};
  const std::int64_t rows = op.logits.dim(0);
  if (rows == 0) return;
  constexpr int width = per_vector<float>;
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
  register_sharded_loss(table);
  table.add<CrossEntropy>([](Stream& stream, const CrossEntropy& op) {
    // An absent gradient says f32.
    visit_float(op.d_logits.dtype(), [&]<class T>(T) { run_cross_entropy<T>(stream, op); });
  });
}

}  // namespace orchard::GPU_NAMESPACE
