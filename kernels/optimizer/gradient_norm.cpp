#include "kernels/optimizer/gradient_norm.h"

#include "kernels/core/check.h"
#include "kernels/device/device.h"

namespace orchard {

void run(Stream& stream, const SumInOrder& op) {
  const Checker check("SumInOrder", stream.device().kind());
  check.optional("terms", op.terms, {op.terms.numel()}, {DType::f32});
  check.operand("sum", op.sum, {1}, {DType::i64});
  dispatch(stream, op, "SumInOrder");
}

void run(Stream& stream, const ClipByNorm& op) {
  const Checker check("ClipByNorm", stream.device().kind());
  check.that(op.squares.numel() > 0, "a norm has at least one term");
  check.operand("squares", op.squares, {op.squares.numel()}, {DType::i64});
  check.operand("norm", op.norm, {1}, {DType::i64});
  check.operand("scale", op.scale, {1}, {DType::f32});
  dispatch(stream, op, "ClipByNorm");
}

}  // namespace orchard
