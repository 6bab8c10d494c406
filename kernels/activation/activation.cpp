#include "kernels/activation/activation.h"

#include "kernels/core/check.h"
#include "kernels/device/device.h"

namespace orchard {

void run(Stream& stream, const ActivationForward& op) {
  const Checker check("ActivationForward", stream.device().kind());
  check.operand("x", op.x, op.x.shape(), float_types);
  check.operand("y", op.y, op.x.shape(), {op.x.dtype()});
  dispatch(stream, op, "ActivationForward");
}

void run(Stream& stream, const ActivationBackward& op) {
  const Checker check("ActivationBackward", stream.device().kind());
  check.operand("x", op.x, op.x.shape(), float_types);
  check.operand("d_y", op.d_y, op.x.shape(), {op.x.dtype()});
  check.operand("d_x", op.d_x, op.x.shape(), {op.x.dtype()});
  dispatch(stream, op, "ActivationBackward");
}

void run(Stream& stream, const SwiGluForward& op) {
  const Checker check("SwiGluForward", stream.device().kind());
  const Shape shape = op.gate.shape();
  check.that(shape.rank() == 2, "gate is [rows, cols]");
  check.operand("gate", op.gate, shape, float_types);
  check.operand("up", op.up, shape, {op.gate.dtype()});
  check.operand("y", op.y, shape, {op.gate.dtype()});
  check.optional("row_count", op.row_count, {1}, {DType::i32});
  dispatch(stream, op, "SwiGluForward");
}

void run(Stream& stream, const SwiGluBackward& op) {
  const Checker check("SwiGluBackward", stream.device().kind());
  const Shape shape = op.gate.shape();
  check.that(shape.rank() == 2, "gate is [rows, cols]");
  check.operand("gate", op.gate, shape, float_types);
  check.operand("up", op.up, shape, {op.gate.dtype()});
  check.operand("d_y", op.d_y, shape, {op.gate.dtype()});
  check.operand("d_gate", op.d_gate, shape, {op.gate.dtype()});
  check.operand("d_up", op.d_up, shape, {op.gate.dtype()});
  check.optional("y", op.y, shape, {op.gate.dtype()});
  check.optional("row_count", op.row_count, {1}, {DType::i32});
  dispatch(stream, op, "SwiGluBackward");
}

void run(Stream& stream, const ExciteForward& op) {
  const Checker check("ExciteForward", stream.device().kind());
  const Shape shape = op.x.shape();
  check.that(shape.rank() == 3, "x is [images, pixels, channels]");
  check.operand("x", op.x, shape, float_types);
  check.operand("scale", op.scale, {shape[0], shape[2]}, {op.x.dtype()});
  check.operand("y", op.y, shape, {op.x.dtype()});
  dispatch(stream, op, "ExciteForward");
}

void run(Stream& stream, const ExciteBackward& op) {
  const Checker check("ExciteBackward", stream.device().kind());
  const Shape shape = op.x.shape();
  check.that(shape.rank() == 3, "x is [images, pixels, channels]");
  check.operand("x", op.x, shape, float_types);
  check.operand("scale", op.scale, {shape[0], shape[2]}, {op.x.dtype()});
  check.operand("d_y", op.d_y, shape, {op.x.dtype()});
  check.operand("d_x", op.d_x, shape, {op.x.dtype()});
  check.operand("d_scale", op.d_scale, {shape[0], shape[2]}, {op.x.dtype()});
  dispatch(stream, op, "ExciteBackward");
}

}  // namespace orchard
