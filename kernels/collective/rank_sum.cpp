#include "kernels/collective/rank_sum.h"

#include "kernels/core/check.h"
#include "kernels/device/device.h"

namespace orchard {

void run(Stream& stream, const RankSum& op) {
  const Checker check("RankSum", stream.device().kind());
  const std::int64_t n = op.result.shape().numel();
  check.that(op.parts.rank() == 2 && op.parts.dim(1) >= n, "parts is [ranks, n or more]");
  check.that(op.own_rank >= 0 && op.own_rank < op.parts.dim(0), "own_rank is one of the ranks");
  check.operand("parts", op.parts, op.parts.shape(), float_types);
  check.operand("own", op.own, {n}, {op.parts.dtype()});
  check.operand("result", op.result, {n}, {op.parts.dtype()});
  dispatch(stream, op, "RankSum");
}

}  // namespace orchard
