#include "kernels/norm/norm.h"

#include <cmath>

#include "kernels/core/check.h"
#include "kernels/device/device.h"

namespace orchard {
void run(Stream& stream, const RmsNormForward& op) {
  const Checker check("RmsNormForward", stream.device().kind());
  const Shape shape = op.x.shape();
  check.that(shape.rank() == 2, "x is [rows, cols]");
  check.operand("x", op.x, shape, float_types);
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
  check.operand("x", op.x, shape, float_types);
  check.operand("weight", op.weight, {shape[1]}, {op.x.dtype()});
  check.operand("inverse_rms", op.inverse_rms, {shape[0]}, {DType::f32});
  check.operand("d_y", op.d_y, shape, {op.x.dtype()});
  check.optional("d_sum", op.d_sum, shape, {op.x.dtype()});
  check.operand("d_x", op.d_x, shape, {op.x.dtype()});
  check.optional("d_weight", op.d_weight, {shape[1]}, {DType::f32});
  dispatch(stream, op, "RmsNormBackward");
}

void run(Stream& stream, const LayerNormForward& op) {
  const Checker check("LayerNormForward", stream.device().kind());
  const Shape shape = op.x.shape();
  check.that(shape.rank() == 2, "x is [rows, cols]");
  check.operand("x", op.x, shape, float_types);
  check.optional("delta", op.delta, shape, {op.x.dtype()});
  check.operand("weight", op.weight, {shape[1]}, {op.x.dtype()});
  check.operand("bias", op.bias, {shape[1]}, {op.x.dtype()});
  check.that(static_cast<bool>(op.delta) == static_cast<bool>(op.sum),
             "sum is given exactly when delta is");
  check.optional("sum", op.sum, shape, {op.x.dtype()});
  check.operand("y", op.y, shape, {op.x.dtype()});
  check.operand("mean", op.mean, {shape[0]}, {DType::f32});
  check.operand("inverse_std", op.inverse_std, {shape[0]}, {DType::f32});
  dispatch(stream, op, "LayerNormForward");
}

void run(Stream& stream, const LayerNormBackward& op) {
  const Checker check("LayerNormBackward", stream.device().kind());
  const Shape shape = op.x.shape();
  check.that(shape.rank() == 2, "x is [rows, cols]");
  check.operand("x", op.x, shape, float_types);
  check.operand("weight", op.weight, {shape[1]}, {op.x.dtype()});
  check.operand("mean", op.mean, {shape[0]}, {DType::f32});
  check.operand("inverse_std", op.inverse_std, {shape[0]}, {DType::f32});
  check.operand("d_y", op.d_y, shape, {op.x.dtype()});
  check.optional("d_sum", op.d_sum, shape, {op.x.dtype()});
  check.operand("d_x", op.d_x, shape, {op.x.dtype()});
  check.that(static_cast<bool>(op.d_weight) == static_cast<bool>(op.d_bias),
             "d_weight and d_bias are wanted together");
  check.optional("d_weight", op.d_weight, {shape[1]}, {DType::f32});
  check.optional("d_bias", op.d_bias, {shape[1]}, {DType::f32});
  dispatch(stream, op, "LayerNormBackward");
}

namespace {

// The operands that QK-norm's forward and backward have in common.
template <class Operation>
void check_qk_norm(const Checker& check, const Operation& op) {
  const Shape shape = op.x.shape();
  check.that(shape.rank() == 3, "x is [tokens, heads, head_dim]");
  check.that(shape[2] % 2 == 0, "head_dim is even: its halves are rotated together");
  check.operand("x", op.x, shape, float_types);
  check.operand("weight", op.weight, {shape[2]}, {op.x.dtype()});
  check.that(op.rotation.rank() == 2, "rotation is [positions, head_dim]");
  check.operand("rotation", op.rotation, {op.rotation.dim(0), shape[2]}, {DType::f32});
  check.operand("positions", op.positions, {shape[0]}, {DType::i32});
  check.operand("inverse_rms", op.inverse_rms, {shape[0], shape[1]}, {DType::f32});
}

}  // namespace

void run(Stream& stream, const QkNormRopeForward& op) {
  const Checker check("QkNormRopeForward", stream.device().kind());
  check_qk_norm(check, op);
  check.operand("y", op.y, op.x.shape(), {op.x.dtype()});
  dispatch(stream, op, "QkNormRopeForward");
}

void run(Stream& stream, const QkNormRopeBackward& op) {
  const Checker check("QkNormRopeBackward", stream.device().kind());
  check_qk_norm(check, op);
  check.operand("d_y", op.d_y, op.x.shape(), {op.x.dtype()});
  check.operand("d_x", op.d_x, op.x.shape(), {op.x.dtype()});
  check.optional("d_weight", op.d_weight, {op.x.dim(2)}, {DType::f32});
  dispatch(stream, op, "QkNormRopeBackward");
}

void rotation_table(float* table, std::int64_t positions, std::int64_t head_dim, double theta) {
  const std::int64_t half = head_dim / 2;
  for (std::int64_t i = 0; i < half; ++i) {
    const double frequency =
        std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
    for (std::int64_t position = 0; position < positions; ++position) {
      const double angle = static_cast<double>(position) * frequency;
      table[position * head_dim + i] = static_cast<float>(std::cos(angle));
      table[position * head_dim + half + i] = static_cast<float>(std::sin(angle));
    }
  }
}

}  // namespace orchard
