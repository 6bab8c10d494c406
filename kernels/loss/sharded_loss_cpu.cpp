// Softmax cross-entropy over the shards of a vocabulary on the CPU: the passes of loss_cpu.cpp, cut
// where the ranks exchange three numbers a row. Bytes: 4 per logit and 4 per exponential, then 4 per
// exponential and 4 (f32) or 2 (bf16) per gradient. Bound by memory.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/loss/sharded_loss_cpu.cpp"
#include "hwy/foreach_target.h"  // compiles this file once per instruction set
#include "hwy/highway.h"
//
#include <cmath>

#include "kernels/core/visit.h"
#include "kernels/cpu/number.h"
#include "kernels/device/device.h"
#include "kernels/loss/loss-inl.h"
#include "kernels/loss/loss.h"
#include "kernels/loss/loss_cpu.h"

HWY_BEFORE_NAMESPACE();
namespace orchard::cpu::HWY_NAMESPACE {

// One row of one shard, as it travels.
struct RowStatistics {
  float maximum, sum, target_logit;
};
static_assert(sizeof(RowStatistics) == softmax_statistics * sizeof(float));

void softmax_of_shard(Stream&, const SoftmaxOfShard& op) {
  const std::int64_t rows = op.logits.dim(0), columns = op.logits.dim(1);
  const std::int32_t* const targets = op.targets.data<std::int32_t>();
  const std::int64_t vocabulary = op.shard.vocabulary > 0 ? op.shard.vocabulary : columns;
  // Before any thread starts: no exception may leave a parallel region, and nothing is written yet.
  for (std::int64_t row = 0; row < rows; ++row) {
    require(targets[row] >= -1 && targets[row] < vocabulary,
            "SoftmaxOfShard: row {} has target {}, outside the vocabulary of {} (-1 means none)",
            row, targets[row], vocabulary);
  }
  auto* const statistics = reinterpret_cast<RowStatistics*>(op.statistics.data<float>());
  parallel_for(rows, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      if (targets[row] < 0) continue;
      const float* const logits = row_of<float>(op.logits, row, columns);
      float* const exponentials = row_of<float>(op.exponentials, row, columns);
      const std::int64_t target = targets[row] - op.shard.first_id;
      RowStatistics& own = statistics[row];
      own.maximum = maximum_of(logits, columns);
      own.target_logit = target >= 0 && target < columns ? logits[target] : 0;
      const float* const next = row + 1 < rows ? logits + columns : logits;
      own.sum = sum_of_exponentials(logits, columns, own.maximum, exponentials, next);
    }
  });
}

// Of all shards together.
RowStatistics merge(const RowStatistics* shards, std::int64_t count, std::int64_t stride) {
  RowStatistics all = shards[0];
  for (std::int64_t i = 1; i < count; ++i)
    all.maximum = std::max(all.maximum, shards[i * stride].maximum);
  all.sum = all.target_logit = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const RowStatistics& shard = shards[i * stride];
    all.sum += shard.sum * std::exp(shard.maximum - all.maximum);
    all.target_logit += shard.target_logit;
  }
  return all;
}

void cross_entropy_of_shards(Stream&, const CrossEntropyOfShards& op) {
  const std::int64_t shards = op.statistics.dim(0), rows = op.statistics.dim(1);
  const auto* const statistics =
      reinterpret_cast<const RowStatistics*>(op.statistics.data<float>());
  const std::int32_t* const targets = op.targets.data<std::int32_t>();
  parallel_for(rows, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      float& loss = op.losses.data<float>()[row];
      if (targets[row] < 0) {
        loss = 0;
        if (op.d_logits) write_zero_gradient(op.d_logits, row);
        continue;
      }
      const RowStatistics all = merge(statistics + row, shards, rows);
      loss = all.maximum - all.target_logit + std::log(all.sum);
      if (!op.d_logits) continue;
      const std::int64_t columns = op.d_logits.dim(1);
      const float own_maximum = statistics[op.index * rows + row].maximum;
      const float scale = number_or(op.scale, 1);
      const float factor = scale * std::exp(own_maximum - all.maximum) / all.sum;
      visit_float(op.d_logits.dtype(), [&]<class T>(T) {
        write_gradient(row_of<float>(op.exponentials, row, columns), columns,
                       targets[row] - op.shard.first_id, factor, scale,
                       row_of<T>(op.d_logits, row, columns));
      });
    }
  });
}

}  // namespace orchard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace orchard::cpu {

HWY_EXPORT(softmax_of_shard);
HWY_EXPORT(cross_entropy_of_shards);

void register_sharded_loss(OperationTable& table) {
  table.add<SoftmaxOfShard>([](Stream& s, const SoftmaxOfShard& op) {
    HWY_DYNAMIC_DISPATCH(softmax_of_shard)(s, op);
  });
  table.add<CrossEntropyOfShards>([](Stream& s, const CrossEntropyOfShards& op) {
    HWY_DYNAMIC_DISPATCH(cross_entropy_of_shards)(s, op);
  });
}

}  // namespace orchard::cpu
#endif  // HWY_ONCE
