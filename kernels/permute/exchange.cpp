#include "kernels/permute/exchange.h"

#include "kernels/core/check.h"
#include "kernels/device/device.h"

namespace orchard {
namespace {

// x [rows, hidden] and targets [rows, slots] fit `packed`.
void check_packed(const Checker& check, const ConstTensor& x, const ConstTensor& targets,
                  const ConstTensor& packed) {
  check.that(x.rank() == 2 && targets.rank() == 2 && packed.rank() == 2,
             "x is [rows, hidden], targets [rows, slots], packed [rows, bytes]");
  check.operand("x", x, x.shape(), float_types);
  check.operand("targets", targets, {x.dim(0), targets.dim(1)}, {DType::i32});
  check.operand("packed", packed,
                {packed.dim(0), packed_row_bytes(x.dim(1), x.dtype(), targets.dim(1))},
                {DType::u8});
}

}  // namespace

void run(Stream& stream, const MapChoices& op) {
  const Checker check("MapChoices", stream.device().kind());
  check.that(op.experts.rank() == 2 && op.table.rank() == 2,
             "experts is [tokens, k], table [experts, parts]");
  const std::int64_t tokens = op.experts.dim(0), k = op.experts.dim(1);
  check.operand("experts", op.experts, op.experts.shape(), {DType::i32});
  check.operand("table", op.table, op.table.shape(), {DType::i32});
  check.operand("targets", op.targets, {tokens, k * op.table.dim(1)}, {DType::i32});
  dispatch(stream, op, "MapChoices");
}

void run(Stream& stream, const CopyRuns& op) {
  const Checker check("CopyRuns", stream.device().kind());
  check.that(op.x.rank() >= 1 && op.y.rank() == op.x.rank(), "x and y have rows of one shape");
  check.that(op.runs.rank() == 2, "runs is [runs, 3]");
  check.operand("x", op.x, op.x.shape(), {op.x.dtype()});
  check.operand("runs", op.runs, {op.runs.dim(0), 3}, {DType::i32});
  check.operand("y", op.y, op.x.shape().with(0, op.y.dim(0)), {op.x.dtype()});
  dispatch(stream, op, "CopyRuns");
}

void run(Stream& stream, const PackRows& op) {
  const Checker check("PackRows", stream.device().kind());
  check_packed(check, op.x, op.targets, op.packed);
  check.that(op.source.rank() == 1 && op.source.dim(0) >= op.packed.dim(0),
             "source has an entry for each packed row");
  check.operand("source", op.source, op.source.shape(), {DType::i32});
  dispatch(stream, op, "PackRows");
}

void run(Stream& stream, const UnpackRows& op) {
  const Checker check("UnpackRows", stream.device().kind());
  check_packed(check, op.x, op.targets, op.packed);
  check.that(op.x.dim(0) == op.packed.dim(0), "x has as many rows as packed");
  dispatch(stream, op, "UnpackRows");
}

}  // namespace orchard
