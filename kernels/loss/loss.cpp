#include "kernels/loss/loss.h"

#include "kernels/core/check.h"
#include "kernels/device/device.h"

namespace orchard {

void run(Stream& stream, const CrossEntropy& op) {
  const Checker check("CrossEntropy", stream.device().kind());
  const Shape shape = op.logits.shape();
  check.that(shape.rank() == 2 && shape[1] > 0, "logits are [rows, vocab] with vocab > 0");
  check.operand("logits", op.logits, shape, {DType::f32});
  check.operand("targets", op.targets, {shape[0]}, {DType::i32});
  check.optional("scale", op.scale, {1}, {DType::f32});
  check.operand("losses", op.losses, {shape[0]}, {DType::f32});
  check.optional("d_logits", op.d_logits, shape, float_types);
  check.that(op.d_logits.raw() != op.logits.raw() || op.d_logits.dtype() == DType::f32 ||
                 op.logits.numel() == 0,
             "d_logits may alias logits only as f32");
  dispatch(stream, op, "CrossEntropy");
}

void run(Stream& stream, const SoftmaxOfShard& op) {
  const Checker check("SoftmaxOfShard", stream.device().kind());
  const Shape shape = op.logits.shape();
  check.that(shape.rank() == 2 && shape[1] > 0, "logits are [rows, shard] with shard > 0");
  check.that(op.shard.holds(shape[1]), "the logits' ids lie inside the vocabulary");
  check.operand("logits", op.logits, shape, {DType::f32});
  check.operand("targets", op.targets, {shape[0]}, {DType::i32});
  check.operand("statistics", op.statistics, {shape[0], softmax_statistics}, {DType::f32});
  check.optional("exponentials", op.exponentials, shape, {DType::f32});
  dispatch(stream, op, "SoftmaxOfShard");
}

void run(Stream& stream, const CrossEntropyOfShards& op) {
  const Checker check("CrossEntropyOfShards", stream.device().kind());
  const Shape shape = op.statistics.shape();
  check.that(shape.rank() == 3 && op.index >= 0 && op.index < shape[0],
             "statistics are [shards, rows, 3], and the index is that of one");
  check.that(static_cast<bool>(op.exponentials) == static_cast<bool>(op.d_logits),
             "exponentials are given exactly when d_logits is");
  check.operand("statistics", op.statistics, shape.with(2, softmax_statistics), {DType::f32});
  check.operand("targets", op.targets, {shape[1]}, {DType::i32});
  check.optional("scale", op.scale, {1}, {DType::f32});
  check.operand("losses", op.losses, {shape[1]}, {DType::f32});
  if (op.exponentials) {
    check.that(op.exponentials.rank() == 2, "exponentials are [rows, shard]");
    check.that(op.shard.holds(op.exponentials.dim(1)),
               "the columns' ids lie inside the vocabulary");
    const Shape logits = op.exponentials.shape().with(0, shape[1]);
    check.operand("exponentials", op.exponentials, logits, {DType::f32});
    check.operand("d_logits", op.d_logits, logits, float_types);
    check.that(op.d_logits.raw() != op.exponentials.raw() || op.d_logits.dtype() == DType::f32 ||
                   logits.numel() == 0,
               "d_logits may alias exponentials only as f32");
  }
  dispatch(stream, op, "CrossEntropyOfShards");
}

}  // namespace orchard
