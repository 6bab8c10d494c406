#include "kernels/elementwise/elementwise.h"

#include "kernels/core/check.h"
#include "kernels/device/device.h"

namespace orchard {
namespace {

// `inner` are the innermost extents of `outer`.
bool is_suffix(const Shape& inner, const Shape& outer) {
  if (inner.rank() > outer.rank()) return false;
  for (int i = 1; i <= inner.rank(); ++i) {
    if (inner[-i] != outer[-i]) return false;
  }
  return true;
}

}  // namespace

void run(Stream& stream, const Add& op) {
  const Checker check("Add", stream.device().kind());
  const Shape shape = op.a.shape();
  check.operand("a", op.a, shape, float_types);
  require(is_suffix(op.b.shape(), shape),
          "Add: b has shape {}, expected the innermost dimensions of a's {}", op.b.shape(), shape);
  check.operand("b", op.b, op.b.shape(), {op.a.dtype()});
  check.operand("y", op.y, shape, {op.a.dtype()});
  dispatch(stream, op, "Add");
}

void run(Stream& stream, const Convert& op) {
  const Checker check("Convert", stream.device().kind());
  check.operand("x", op.x, op.x.shape(), float_types);
  check.operand("y", op.y, op.x.shape(), float_types);
  dispatch(stream, op, "Convert");
}

void run(Stream& stream, const Scale& op) {
  const Checker check("Scale", stream.device().kind());
  check.operand("x", op.x, op.x.shape(), float_types);
  dispatch(stream, op, "Scale");
}

void run(Stream& stream, const ColumnSum& op) {
  const Checker check("ColumnSum", stream.device().kind());
  check.that(op.x.rank() == 2, "x is [rows, cols]");
  check.operand("x", op.x, op.x.shape(), float_types);
  check.operand("y", op.y, {op.x.dim(1)}, {DType::f32});
  dispatch(stream, op, "ColumnSum");
}

void run(Stream& stream, const SumOfSquares& op) {
  const Checker check("SumOfSquares", stream.device().kind());
  check.operand("x", op.x, op.x.shape(), {DType::f32});
  check.operand("result", op.result, {1}, {DType::f32});
  dispatch(stream, op, "SumOfSquares");
}

}  // namespace orchard
