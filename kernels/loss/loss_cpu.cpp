// Softmax cross-entropy on the CPU. A row of logits is read from memory once and its gradient
// written once; the three passes over it (maximum, exponentials and their sum, scaling) meet in the
// L2 cache, which holds rows of 100 000 tokens. Keeping the exponentials costs less than a second
// evaluation: they wait in the gradient's own row, or in workspace where that is bf16. Bytes: 4 per
// logit, and 4 (f32) or 2 (bf16) per gradient; about 20 FLOPs a logit. Bound by memory,
// as the second pass, which computes, fetches the row that the next first pass reads.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/loss/loss_cpu.cpp"
#include "hwy/foreach_target.h"  // compiles this file once per instruction set
#include "hwy/highway.h"
//
#include <cmath>

#include "kernels/core/visit.h"
#include "kernels/cpu/number.h"
#include "kernels/cpu/register.h"
#include "kernels/device/device.h"
#include "kernels/loss/loss-inl.h"
#include "kernels/loss/loss.h"
#include "kernels/loss/loss_cpu.h"

HWY_BEFORE_NAMESPACE();
namespace orchard::cpu::HWY_NAMESPACE {

// `scratch` has room for a row, unless d_logits is f32 or absent.
void cross_entropy_row(const CrossEntropy& op, std::int64_t row, float* scratch) {
  const std::int64_t vocab = op.logits.dim(1);
  const std::int32_t target = op.targets.data<std::int32_t>()[row];
  float& loss = op.losses.data<float>()[row];
  if (target < 0) {
    loss = 0;
    if (op.d_logits) write_zero_gradient(op.d_logits, row);
    return;
  }
  const float* const logits = row_of<float>(op.logits, row, vocab);
  const bool in_place = op.d_logits && op.d_logits.dtype() == DType::f32;
  float* const exponentials = in_place ? row_of<float>(op.d_logits, row, vocab) : scratch;
  const float maximum = maximum_of(logits, vocab);
  const float target_logit = logits[target];
  const float* const next = row + 1 < op.logits.dim(0) ? logits + vocab : logits;
  const float sum = sum_of_exponentials(logits, vocab, maximum, exponentials, next);
  loss = maximum - target_logit + std::log(sum);
  if (!op.d_logits) return;
  const float scale = number_or(op.scale, 1);
  visit_float(op.d_logits.dtype(), [&]<class T>(T) {
    write_gradient(exponentials, vocab, target, scale / sum, scale,
                   row_of<T>(op.d_logits, row, vocab));
  });
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

void cross_entropy(Stream& stream, const CrossEntropy& op) {
  check_targets(op);
  const std::int64_t vocab = op.logits.dim(1);
  const bool needs_scratch = op.d_logits && op.d_logits.dtype() != DType::f32;
  auto* const scratch = needs_scratch
                            ? reinterpret_cast<float*>(stream.workspace(
                                  static_cast<std::size_t>(thread_count() * vocab) * sizeof(float)))
                            : nullptr;
  parallel_for(op.logits.dim(0), 1, [&](std::int64_t begin, std::int64_t end) {
    float* const own = scratch ? scratch + omp_get_thread_num() * vocab : nullptr;
    for (std::int64_t row = begin; row < end; ++row) cross_entropy_row(op, row, own);
  });
}

}  // namespace orchard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace orchard::cpu {

HWY_EXPORT(cross_entropy);

void register_loss(OperationTable& table) {
  register_sharded_loss(table);
  table.add<CrossEntropy>([](Stream& s, const CrossEntropy& op) {
    HWY_DYNAMIC_DISPATCH(cross_entropy)(s, op);
  });
}

}  // namespace orchard::cpu
#endif  // HWY_ONCE
