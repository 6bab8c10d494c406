#include "kernels/convolution/convolution.h"

#include "kernels/core/check.h"
#include "kernels/device/device.h"

namespace orchard {
void run(Stream& stream, const DepthwiseConv3x3Forward& op) {
  const Checker check("DepthwiseConv3x3Forward", stream.device().kind());
  const Shape shape = op.x.shape();
  check.that(shape.rank() == 4, "x is [images, height, width, channels]");
  check.operand("x", op.x, shape, float_types);
  check.operand("weight", op.weight, {shape[3], 3, 3}, {op.x.dtype()});
  check.operand("y", op.y, shape, {op.x.dtype()});
  dispatch(stream, op, "DepthwiseConv3x3Forward");
}

void run(Stream& stream, const DepthwiseConv3x3BackwardInput& op) {
  const Checker check("DepthwiseConv3x3BackwardInput", stream.device().kind());
  const Shape shape = op.d_y.shape();
  check.that(shape.rank() == 4, "d_y is [images, height, width, channels]");
  check.operand("d_y", op.d_y, shape, float_types);
  check.operand("weight", op.weight, {shape[3], 3, 3}, {op.d_y.dtype()});
  check.operand("d_x", op.d_x, shape, {op.d_y.dtype()});
  dispatch(stream, op, "DepthwiseConv3x3BackwardInput");
}

void run(Stream& stream, const DepthwiseConv3x3BackwardWeight& op) {
  const Checker check("DepthwiseConv3x3BackwardWeight", stream.device().kind());
  const Shape shape = op.x.shape();
  check.that(shape.rank() == 4, "x is [images, height, width, channels]");
  check.operand("x", op.x, shape, float_types);
  check.operand("d_y", op.d_y, shape, {op.x.dtype()});
  check.operand("d_weight", op.d_weight, {shape[3], 3, 3}, {DType::f32});
  dispatch(stream, op, "DepthwiseConv3x3BackwardWeight");
}

void run(Stream& stream, const AdaptiveAveragePoolForward& op) {
  const Checker check("AdaptiveAveragePoolForward", stream.device().kind());
  const Shape in = op.x.shape(), out = op.y.shape();
  check.that(in.rank() == 4, "x is [images, height, width, channels]");
  check.that(out.rank() == 4, "y is [images, out_height, out_width, channels]");
  check.that(in[1] > 0 && in[2] > 0, "x has at least one pixel a side");
  check.operand("x", op.x, in, float_types);
  check.operand("y", op.y, {in[0], out[1], out[2], in[3]}, {op.x.dtype()});
  dispatch(stream, op, "AdaptiveAveragePoolForward");
}

void run(Stream& stream, const AdaptiveAveragePoolBackward& op) {
  const Checker check("AdaptiveAveragePoolBackward", stream.device().kind());
  const Shape in = op.d_x.shape(), out = op.d_y.shape();
  check.that(in.rank() == 4, "d_x is [images, height, width, channels]");
  check.that(out.rank() == 4, "d_y is [images, out_height, out_width, channels]");
  check.that(out[1] > 0 && out[2] > 0, "d_y has at least one pixel a side");
  check.operand("d_y", op.d_y, {in[0], out[1], out[2], in[3]}, float_types);
  check.optional("d_extra", op.d_extra, in, {op.d_y.dtype()});
  check.operand("d_x", op.d_x, in, {op.d_y.dtype()});
  dispatch(stream, op, "AdaptiveAveragePoolBackward");
}

}  // namespace orchard
