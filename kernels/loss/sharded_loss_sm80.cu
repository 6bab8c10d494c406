// Softmax cross-entropy over the shards of a vocabulary on GPUs, from sm_80 on: a block per row.
//
// Bytes: SoftmaxOfShard reads a logit and writes an exponential, 8 and two exponentials a logit;
// CrossEntropyOfShards reads the exponential and writes the gradient, 8 (f32) or 6 (bf16), and 12 per
// shard and row. Bound: HBM bandwidth.
#include <cstdint>
#include <limits>

#include "kernels/core/visit.h"
#include "kernels/device/stream.h"
#include "kernels/gpu/number.h"
#include "kernels/loss/loss.h"
#include "kernels/loss/loss_gpu.h"

namespace orchard::GPU_NAMESPACE {
namespace {

constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();

// One row of one shard, as it travels.
struct RowStatistics {
  float maximum, sum, target_logit;
};
static_assert(sizeof(RowStatistics) == softmax_statistics * sizeof(float));

__device__ RowStatistics load_statistics(const float* statistics, std::int64_t row) {
  const float* const own = statistics + row * softmax_statistics;
  return {load(own), load(own + 1), load(own + 2)};
}

// ---- SoftmaxOfShard --------------------------------------------------------------------------

struct ShardSoftmax {
  const float* logits;  // [rows, columns]
  const int* targets;   // [rows]
  float* statistics;    // [rows, 3]
  float* exponentials;  // [rows, columns], or nullptr; may be logits
  std::int64_t columns, first_id, vocabulary;
};

template <int width>
__global__ void __launch_bounds__(loss_threads) softmax_of_shard(ShardSoftmax op) {
  auto& shared = shared_storage<LossStorage>();
  const std::int64_t row = blockIdx.x;
  const int target = load(op.targets + row);
  if (target == -1) return;
  float* const statistics = op.statistics + row * softmax_statistics;
  const float* const logits = op.logits + row * op.columns;
  const std::int64_t column = target - op.first_id;
  // Before the barriers, behind which the exponentials may overwrite it.
  float target_logit = 0;
  if (target < 0 || target >= op.vocabulary) {
    target_logit = not_a_number;
  } else if (threadIdx.x == 0 && column >= 0 && column < op.columns) {
    target_logit = load(logits + column);
  }
  float* const exponentials =
      op.exponentials == nullptr ? nullptr : op.exponentials + row * op.columns;
  const RowSum total = sum_row<width>(logits, op.columns,
                                      exponentials != nullptr ? Caching::yes : Caching::no, shared);
  if (threadIdx.x == 0) {
    store(statistics, total.maximum);
    store(statistics + 1, total.sum);
    store(statistics + 2, target_logit);
  }
  if (exponentials == nullptr) return;
  for_each_again<width>(logits, op.columns, shared, [&](std::int64_t i, const Values<width>& x) {
    store_values(exponentials + i,
                 map([&](float logit) { return expf(logit - total.maximum); }, x));
  });
}

void run_softmax_of_shard(Stream& stream, const SoftmaxOfShard& op) {
  const std::int64_t rows = op.logits.dim(0), columns = op.logits.dim(1);
  const ShardSoftmax softmax{.logits = op.logits.data<float>(),
                             .targets = op.targets.data<std::int32_t>(),
                             .statistics = op.statistics.data<float>(),
                             .exponentials = op.exponentials.data<float>(),
                             .columns = columns,
                             .first_id = op.shard.first_id,
                             .vocabulary = op.shard.vocabulary > 0 ? op.shard.vocabulary : columns};
  if (rows == 0) return;
  constexpr int width = per_vector<float>;
  const bool vectors =
      columns % width == 0 && all_aligned(16, {softmax.logits, softmax.exponentials});
  launch(stream,
         {.kernel = "softmax_of_shard",
          .grid = {static_cast<unsigned>(rows)},
          .block = {loss_threads},
          .shared_bytes = sizeof(LossStorage)},
         vectors ? softmax_of_shard<width> : softmax_of_shard<1>, softmax);
}

// ---- CrossEntropyOfShards --------------------------------------------------------------------

template <class Gradient>
struct ShardLoss {
  const float* statistics;    // [shards, rows, 3]
  const int* targets;         // [rows]
  const float* exponentials;  // [rows, columns]; may be d_logits
  float* losses;              // [rows]
  Gradient* d_logits;         // [rows, columns], or nullptr
  const float* scale;         // [1], or nullptr
  std::int64_t shards, index, rows, columns, first_id, vocabulary;
};

// Of all shards together, in their order.
__device__ RowStatistics merge(const float* statistics, std::int64_t row, std::int64_t rows,
                               std::int64_t shards) {
  RowStatistics all = load_statistics(statistics, row);
  for (std::int64_t i = 1; i < shards; ++i) {
    all.maximum = fmaxf(all.maximum, load_statistics(statistics, i * rows + row).maximum);
  }
  all.sum = all.target_logit = 0;
  for (std::int64_t i = 0; i < shards; ++i) {
    const RowStatistics shard = load_statistics(statistics, i * rows + row);
    all.sum = fmaf(shard.sum, expf(shard.maximum - all.maximum), all.sum);
    all.target_logit += shard.target_logit;
  }
  return all;
}

template <class Gradient, int width>
__global__ void __launch_bounds__(loss_threads) cross_entropy_of_shards(ShardLoss<Gradient> op) {
  const std::int64_t row = blockIdx.x;
  const int target = load(op.targets + row);
  Gradient* const d_logits = op.d_logits == nullptr ? nullptr : op.d_logits + row * op.columns;
  if (target < 0 || target >= op.vocabulary) {
    if (d_logits != nullptr) write_zeros<Gradient, width>(d_logits, op.columns);
    if (threadIdx.x == 0) store(op.losses + row, target == -1 ? 0.0f : not_a_number);
    return;
  }
  const RowStatistics all = merge(op.statistics, row, op.rows, op.shards);
  if (threadIdx.x == 0) store(op.losses + row, all.maximum - all.target_logit + logf(all.sum));
  if (d_logits == nullptr) return;
  const float own_maximum = load_statistics(op.statistics, op.index * op.rows + row).maximum;
  const float scale = number_or(op.scale, 1);
  const float factor = scale * expf(own_maximum - all.maximum) / all.sum;
  const float* const exponentials = op.exponentials + row * op.columns;
  const std::int64_t column = target - op.first_id;
  for (std::int64_t i = threadIdx.x * width; i < op.columns; i += loss_threads * width) {
    Values<width> gradient = load_values<width>(exponentials + i);
#pragma unroll
    for (int e = 0; e < width; ++e) {
      gradient[e] = gradient[e] * factor - (i + e == column ? scale : 0.0f);
    }
    store_values(d_logits + i, gradient);
  }
}

template <class Gradient>
void run_cross_entropy_of_shards(Stream& stream, const CrossEntropyOfShards& op) {
  const std::int64_t rows = op.statistics.dim(1);
  const std::int64_t columns = op.d_logits ? op.d_logits.dim(1) : 0;
  // Without a gradient an unknown vocabulary need not be known: SoftmaxOfShard has marked the row.
  const std::int64_t vocabulary = op.shard.vocabulary > 0 ? op.shard.vocabulary
                                  : op.d_logits           ? columns
                                                : std::numeric_limits<std::int64_t>::max();
  const ShardLoss<Gradient> loss{.statistics = op.statistics.data<float>(),
                                 .targets = op.targets.data<std::int32_t>(),
                                 .exponentials = op.exponentials.data<float>(),
                                 .losses = op.losses.data<float>(),
                                 .d_logits = op.d_logits ? op.d_logits.data<Gradient>() : nullptr,
                                 .scale = op.scale.data<float>(),
                                 .shards = op.statistics.dim(0),
                                 .index = op.index,
                                 .rows = rows,
                                 .columns = columns,
                                 .first_id = op.shard.first_id,
                                 .vocabulary = vocabulary};
  if (rows == 0) return;
  constexpr int width = per_vector<float>;
  const bool vectors = columns % width == 0 && all_aligned(16, {loss.exponentials}) &&
                       all_aligned(width * sizeof(Gradient), {loss.d_logits});
  launch(stream,
         {.kernel = "cross_entropy_of_shards",
          .grid = {static_cast<unsigned>(rows)},
          .block = {loss_threads}},
         vectors ? cross_entropy_of_shards<Gradient, width> : cross_entropy_of_shards<Gradient, 1>,
         loss);
}

}  // namespace

void register_sharded_loss(OperationTable& table) {
  table.add<SoftmaxOfShard>(run_softmax_of_shard);
  table.add<CrossEntropyOfShards>([](Stream& stream, const CrossEntropyOfShards& op) {
    // An absent gradient says f32.
    visit_float(op.d_logits.dtype(),
                [&]<class T>(T) { run_cross_entropy_of_shards<T>(stream, op); });
  });
}

}  // namespace orchard::GPU_NAMESPACE
