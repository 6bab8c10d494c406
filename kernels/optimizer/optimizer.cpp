#include "kernels/optimizer/optimizer.h"

#include "kernels/core/check.h"
#include "kernels/device/device.h"

namespace orchard {

void run(Stream& stream, const AdamW& op) {
  const Checker check("AdamW", stream.device().kind());
  const Shape shape = op.weights.shape();
  check.operand("weights", op.weights, shape, {DType::f32});
  check.operand("gradients", op.gradients, shape, {DType::f32});
  check.operand("m", op.m, shape, {DType::f32});
  check.operand("v", op.v, shape, {DType::f32});
  check.optional("copy", op.copy, shape, {DType::bf16});
  check.that(op.step >= 1, "steps count from 1");
  dispatch(stream, op, "AdamW");
}

void run(Stream& stream, const AdaFactor& op) {
  const Checker check("AdaFactor", stream.device().kind());
  const Shape shape = op.weights.shape();
  check.operand("weights", op.weights, shape, {DType::f32});
  check.operand("gradients", op.gradients, shape, {DType::f32});
  if (op.v) {
    check.that(!op.v_row && !op.v_col, "either v is given, or v_row and v_col");
    check.operand("v", op.v, shape, {DType::f32});
  } else {
    check.that(shape.rank() == 2, "factored weights are [rows, cols]");
    check.operand("v_row", op.v_row, {shape[0]}, {DType::f32});
    check.operand("v_col", op.v_col, {shape[1]}, {DType::f32});
  }
  check.optional("copy", op.copy, shape, {DType::bf16});
  check.that(op.step >= 1, "steps count from 1");
  dispatch(stream, op, "AdaFactor");
}

}  // namespace orchard
