// Softmax cross-entropy on the CPU. A row is read from memory once and written once: the first pass
// keeps a running maximum and sum (Milakov & Gimelshein 2018), a chunk at a time so that rescaling
// is rare and the chunk's second reading hits the L1 cache; the gradient pass finds the row in the
// L2 cache. Bytes: 4 per logit, and 4 (f32) or 2 (bf16) per gradient; about 40 FLOPs a logit for
// two exponentials. Bound by memory at the edge of arithmetic.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/loss/loss_cpu.cpp"
#include "hwy/foreach_target.h"  // compiles this file once per instruction set
#include "hwy/highway.h"
//
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/core/visit.h"
#include "kernels/cpu/loops-inl.h"
#include "kernels/cpu/math-inl.h"
#include "kernels/cpu/register.h"
#include "kernels/device/device.h"
#include "kernels/loss/loss.h"

HWY_BEFORE_NAMESPACE();
namespace orchard::cpu::HWY_NAMESPACE {

// Finite, so that a row that starts with -inf (masked tokens) does not meet -inf - -inf.
constexpr float lowest = std::numeric_limits<float>::lowest();

// Σ exp(x - maximum) over a row, with its maximum.
struct Partition {
  float maximum = lowest;
  float sum = 0;
};

float maximum_of(const float* x, std::int64_t count) {
  Vector maximum = set(lowest);
  for_each_vector(count, [&](std::int64_t i, std::int64_t n) HWY_ATTR {
    maximum = hn::Max(maximum, first_lanes(load(x + i, n), n, lowest));
  });
  return hn::GetLane(hn::MaxOfLanes(Floats(), maximum));
}

float sum_of_exponentials(const float* x, std::int64_t count, float maximum) {
  Vector total = zero();
  for_each_vector(count, [&](std::int64_t i, std::int64_t n) HWY_ATTR {
    const Vector term = exp(hn::Sub(load(x + i, n), set(maximum)));
    total = hn::Add(total, first_lanes(term, n));
  });
  return sum(total);
}

Partition partition_of(const float* row, std::int64_t vocab) {
  constexpr std::int64_t chunk = 2048;
  Partition total;
  for (std::int64_t begin = 0; begin < vocab; begin += chunk) {
    const std::int64_t count = std::min(chunk, vocab - begin);
    const float maximum = std::max(total.maximum, maximum_of(row + begin, count));
    total.sum = total.sum * std::exp(total.maximum - maximum) +
                sum_of_exponentials(row + begin, count, maximum);
    total.maximum = maximum;
  }
  return total;
}

template <class T>
void write_gradient(const CrossEntropy& op, std::int64_t row, std::int32_t target,
                    const Partition& partition) {
  const std::int64_t vocab = op.logits.dim(1);
  const float* const logits = row_of<float>(op.logits, row, vocab);
  T* const d_logits = row_of<T>(op.d_logits, row, vocab);
  if (target < 0) {
    std::fill_n(d_logits, vocab, T{});
    return;
  }
  const Vector maximum = set(partition.maximum), factor = set(op.scale / partition.sum);
  const Vector at_target =
      hn::Sub(hn::Mul(exp(hn::Sub(set(logits[target]), maximum)), factor), set(op.scale));
  for_each_vector(vocab, [&](std::int64_t i, std::int64_t n) HWY_ATTR {
    store(hn::Mul(exp(hn::Sub(load(logits + i, n), maximum)), factor), d_logits + i, n);
  });
  store(at_target, d_logits + target, 1);
}

// Before any thread starts: no exception may leave a parallel region, and nothing is written yet.
void check_targets(const CrossEntropy& op) {
  const std::int32_t* const targets = op.targets.data<std::int32_t>();
  const std::int64_t vocab = op.logits.dim(1);
  for (std::int64_t row = 0; row < op.logits.dim(0); ++row) {
    require(targets[row] >= -1 && targets[row] < vocab,
            "CrossEntropy: row {} has target {}, outside the vocabulary of {} (-1 means none)", row,
            targets[row], vocab);
  }
}

void cross_entropy(Stream&, const CrossEntropy& op) {
  check_targets(op);
  const std::int64_t vocab = op.logits.dim(1);
  parallel_for(op.logits.dim(0), 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      const std::int32_t target = op.targets.data<std::int32_t>()[row];
      float& loss = op.losses.data<float>()[row];
      Partition partition;
      loss = 0;
      if (target >= 0) {
        const float* const logits = row_of<float>(op.logits, row, vocab);
        partition = partition_of(logits, vocab);
        loss = partition.maximum - logits[target] + std::log(partition.sum);
      }
      if (!op.d_logits) continue;
      visit_float(op.d_logits.dtype(),
                  [&]<class T>(T) { write_gradient<T>(op, row, target, partition); });
    }
  });
}

}  // namespace orchard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace orchard::cpu {

HWY_EXPORT(cross_entropy);

void register_loss(OperationTable& table) {
  table.add<CrossEntropy>([](Stream& s, const CrossEntropy& op) {
    HWY_DYNAMIC_DISPATCH(cross_entropy)(s, op);
  });
}

}  // namespace orchard::cpu
#endif  // HWY_ONCE
