#include "kernels/image/image.h"

#include "kernels/core/check.h"
#include "kernels/device/device.h"

namespace orchard {

void run(Stream& stream, const ResizeBicubic& op) {
  const Checker check("ResizeBicubic", stream.device().kind());
  check.that(op.x.rank() == 3 && op.x.dim(0) > 0 && op.x.dim(1) > 0 && op.x.dim(2) == 3,
             "x is [in_height, in_width, 3], neither side 0");
  check.that(op.y.rank() == 3, "y is [canvas_height, canvas_width, 3]");
  check.that(op.height > 0 && op.width > 0, "height and width are at least 1");
  check.that(op.height <= op.y.dim(0) && op.width <= op.y.dim(1),
             "the canvas holds height x width pixels");
  check.operand("x", op.x, op.x.shape(), {DType::u8});
  check.operand("y", op.y, op.y.shape().with(2, 3), {DType::f32});
  dispatch(stream, op, "ResizeBicubic");
}

void run(Stream& stream, const NormalisePatchify& op) {
  const Checker check("NormalisePatchify", stream.device().kind());
  check.that(op.x.rank() == 3, "x is [canvas_height, canvas_width, 3]");
  check.that(op.patch > 0 && op.side > 0 && op.side % op.patch == 0,
             "side is a positive multiple of patch");
  check.that(op.patch <= max_patch, "patch is at most 512");
  check.that(op.x.dim(0) % op.side == 0 && op.x.dim(1) % op.side == 0,
             "the canvas is cut into whole tiles of side x side");
  check.that(op.height >= 0 && op.height <= op.x.dim(0) && op.width >= 0 && op.width <= op.x.dim(1),
             "the picture lies inside the canvas");
  check.that(op.std[0] > 0 && op.std[1] > 0 && op.std[2] > 0, "std is positive");
  const std::int64_t tiles = op.x.dim(0) / op.side * (op.x.dim(1) / op.side);
  const std::int64_t grid = op.side / op.patch;
  check.operand("x", op.x, op.x.shape().with(2, 3), {DType::f32});
  check.operand("patches", op.patches, {tiles, grid * grid, 3 * op.patch * op.patch},
                {DType::f32, DType::bf16});
  dispatch(stream, op, "NormalisePatchify");
}

}  // namespace orchard
