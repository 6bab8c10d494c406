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
  check.optional("gradient_scale", op.gradient_scale, {1}, {DType::f32});
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
  check.optional("gradient_scale", op.gradient_scale, {1}, {DType::f32});
  check.that(op.step >= 1, "steps count from 1");
  dispatch(stream, op, "AdaFactor");
}

namespace {

// v, or v_row and v_col of a matrix of which this rank has columns [first_col, ...).
struct Statistics {
  ConstTensor v, v_row, v_col;
  std::int64_t first_col;
};
void check_statistics(const Checker& check, const Statistics& s, const Shape& shape) {
  if (s.v) {
    check.that(!s.v_row && !s.v_col, "either v is given, or v_row and v_col");
    check.operand("v", s.v, shape, {DType::f32});
    return;
  }
  check.that(shape.rank() == 2, "factored weights are [rows, cols]");
  check.operand("v_row", s.v_row, {shape[0]}, {DType::f32});
  check.that(s.v_col && s.v_col.rank() == 1 && s.v_col.dtype() == DType::f32 && s.first_col >= 0 &&
                 s.first_col + shape[1] <= s.v_col.dim(0),
             "v_col is f32 [cols] of the whole block");
}

}  // namespace

void run(Stream& stream, const AdaFactorSums& op) {
  const Checker check("AdaFactorSums", stream.device().kind());
  const Shape shape = op.gradients.shape();
  check.that(shape.rank() == 2, "factored gradients are [rows, cols]");
  check.operand("gradients", op.gradients, shape, {DType::f32});
  check.operand("row_sums", op.row_sums, {shape[0]}, {DType::f32});
  check.operand("col_sums", op.col_sums, {shape[1]}, {DType::f32});
  check.optional("gradient_scale", op.gradient_scale, {1}, {DType::f32});
  dispatch(stream, op, "AdaFactorSums");
}

void run(Stream& stream, const AdaFactorMeasure& op) {
  const Checker check("AdaFactorMeasure", stream.device().kind());
  const Shape shape = op.gradients.shape();
  check.operand("gradients", op.gradients, shape, {DType::f32});
  check.operand("squares", op.squares, {1}, {DType::f32});
  check_statistics(
      check, {.v = op.v, .v_row = op.v_row, .v_col = op.v_col, .first_col = op.first_col}, shape);
  if (!op.v) {
    check.operand("row_sums", op.row_sums, {shape[0]}, {DType::f32});
    check.operand("col_sums", op.col_sums, op.v_col.shape(), {DType::f32});
    check.that(op.rows >= shape[0], "the whole block has at least this rank's rows");
  }
  check.optional("gradient_scale", op.gradient_scale, {1}, {DType::f32});
  check.that(op.step >= 1, "steps count from 1");
  dispatch(stream, op, "AdaFactorMeasure");
}

void run(Stream& stream, const AdaFactorApply& op) {
  const Checker check("AdaFactorApply", stream.device().kind());
  const Shape shape = op.weights.shape();
  check.operand("weights", op.weights, shape, {DType::f32});
  check.operand("gradients", op.gradients, shape, {DType::f32});
  check_statistics(
      check, {.v = op.v, .v_row = op.v_row, .v_col = op.v_col, .first_col = op.first_col}, shape);
  check.optional("copy", op.copy, shape, {DType::bf16});
  check.operand("squares", op.squares, {1}, {DType::f32});
  check.that(op.count >= shape.numel(), "the whole block has at least this rank's elements");
  check.optional("gradient_scale", op.gradient_scale, {1}, {DType::f32});
  dispatch(stream, op, "AdaFactorApply");
}

}  // namespace orchard
