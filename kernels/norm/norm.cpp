#include "kernels/norm/norm.h"

#include <cmath>

#include "kernels/core/check.h"
#include "kernels/device/device.h"

namespace orchard {
namespace {

constexpr std::initializer_list<DType> activations = {DType::f32, DType::bf16};

}  // namespace

void run(Stream& stream, const RmsNormForward& op) {
  const Checker check("RmsNormForward", stream.device().kind());
  const Shape shape = op.x.shape();
  check.that(shape.rank() == 2, "x is [rows, cols]");
  check.operand("x", op.x, shape, activations);
  check.optional("delta", op.delta, shape, {op.x.dtype()});
  check.operand("weight", op.weight, {shape[1]}, {op.x.dtype()});
  check.that(static_cast<bool>(op.delta) == static_cast<bool>(op.sum),
             "sum is given exactly when delta is");
  check.optional("sum", op.sum, shape, {op.x.dtype()});
  check.operand("y", op.y, shape, {op.x.dtype()});
  check.operand("inverse_rms", op.inverse_rms, {shape[0]}, {DType::f32});
  dispatch(stream, op, "RmsNormForward");
}

void run(Stream& stream, const RmsNormBackward& op) {
  const Checker check("RmsNormBackward", stream.device().kind());
  const Shape shape = op.x.shape();
  check.that(shape.rank() == 2, "x is [rows, cols]");
  check.operand("x", op.x, shape, activations);
  check.operand("weight", op.weight, {shape[1]}, {op.x.dtype()});
  check.operand("inverse_rms", op.inverse_rms, {shape[0]}, {DType::f32});
  check.operand("d_y", op.d_y, shape, {op.x.dtype()});
  check.optional("d_sum", op.d_sum, shape, {op.x.dtype()});
  check.operand("d_x", op.d_x, shape, {op.x.dtype()});
  check.optional("d_weight", op.d_weight, {shape[1]}, {DType::f32});
  dispatch(stream, op, "RmsNormBackward");
}

}  // namespace orchard
