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
  check.operand("losses", op.losses, {shape[0]}, {DType::f32});
  check.optional("d_logits", op.d_logits, shape, float_types);
  check.that(op.d_logits.raw() != op.logits.raw() || op.d_logits.dtype() == DType::f32 ||
                 op.logits.numel() == 0,
             "d_logits may alias logits only as f32");
  dispatch(stream, op, "CrossEntropy");
}

}  // namespace orchard
