#include "kernels/permute/permute.h"

#include "kernels/core/check.h"
#include "kernels/device/device.h"

namespace orchard {
namespace {

// slot is [tokens, k · parts], no wider than the kernels' stack buffers.
void check_slot(const Checker& check, const ConstTensor& slot, std::int64_t tokens) {
  check.that(slot.rank() == 2, "slot is [tokens, k · parts]");
  check.that(slot.dim(1) <= max_slots, "k · parts is at most 32");
  check.operand("slot", slot, {tokens, slot.dim(1)}, {DType::i32});
}

// gates are [tokens, k] for a slot of [tokens, k · parts].
void check_gates(const Checker& check, const ConstTensor& gates, const ConstTensor& slot) {
  check.that(gates.rank() == 2 && gates.dim(1) > 0 && slot.dim(1) % gates.dim(1) == 0,
             "gates are [tokens, k] where slot is [tokens, k · parts]");
  check.operand("gates", gates, {slot.dim(0), gates.dim(1)}, {DType::f32});
}

}  // namespace

void run(Stream& stream, const PermutePlan& op) {
  const Checker check("PermutePlan", stream.device().kind());
  const Shape shape = op.experts.shape();
  check.that(shape.rank() == 2, "experts is [tokens, k]");
  check.that(op.row_offsets.rank() == 1 && op.row_offsets.dim(0) >= 1,
             "row_offsets is [experts + 1]");
  check.that(op.source.rank() == 1, "source is [max_rows]");
  check.that(op.multiple >= 1, "rows are padded to a multiple of at least 1");
  check.that(op.group_rows >= 0 && op.group_rows % op.multiple == 0,
             "group_rows is a multiple of `multiple`, or 0");
  check.operand("experts", op.experts, shape, {DType::i32});
  check.operand("row_offsets", op.row_offsets, op.row_offsets.shape(), {DType::i32});
  check.operand("source", op.source, op.source.shape(), {DType::i32});
  check.operand("slot", op.slot, shape, {DType::i32});
  dispatch(stream, op, "PermutePlan");
}

void run(Stream& stream, const DispatchForward& op) {
  const Checker check("DispatchForward", stream.device().kind());
  check.that(op.x.rank() == 2 && op.rows.rank() == 2,
             "x is [tokens, hidden], rows [max_rows, hidden]");
  check.that(op.row_offsets.rank() == 1 && op.row_offsets.dim(0) >= 1,
             "row_offsets is [experts + 1]");
  const std::int64_t max_rows = op.rows.dim(0);
  check.operand("x", op.x, op.x.shape(), float_types);
  check.operand("source", op.source, {max_rows}, {DType::i32});
  if (op.slot) check_slot(check, op.slot, op.x.dim(0));
  check.operand("row_offsets", op.row_offsets, op.row_offsets.shape(), {DType::i32});
  check.operand("rows", op.rows, {max_rows, op.x.dim(1)}, {op.x.dtype()});
  dispatch(stream, op, "DispatchForward");
}

void run(Stream& stream, const DispatchBackward& op) {
  const Checker check("DispatchBackward", stream.device().kind());
  check.that(op.d_rows.rank() == 2 && op.d_x.rank() == 2,
             "d_rows is [max_rows, hidden], d_x [tokens, hidden]");
  const Shape shape = op.d_x.shape();
  check.operand("d_rows", op.d_rows, {op.d_rows.dim(0), shape[1]}, float_types);
  check_slot(check, op.slot, shape[0]);
  check.optional("d_extra", op.d_extra, shape, {op.d_rows.dtype()});
  check.operand("d_x", op.d_x, shape, {op.d_rows.dtype()});
  dispatch(stream, op, "DispatchBackward");
}

void run(Stream& stream, const CombineForward& op) {
  const Checker check("CombineForward", stream.device().kind());
  check.that(op.rows.rank() == 2 && op.y.rank() == 2,
             "rows is [max_rows, hidden], y [tokens, hidden]");
  const Shape shape = op.y.shape();
  check.operand("rows", op.rows, {op.rows.dim(0), shape[1]}, float_types);
  check_slot(check, op.slot, shape[0]);
  check_gates(check, op.gates, op.slot);
  check.operand("y", op.y, shape, {op.rows.dtype()});
  dispatch(stream, op, "CombineForward");
}

void run(Stream& stream, const CombineBackward& op) {
  const Checker check("CombineBackward", stream.device().kind());
  check.that(op.rows.rank() == 2 && op.d_y.rank() == 2,
             "rows is [max_rows, hidden], d_y [tokens, hidden]");
  check.that(!op.row_offsets || (op.row_offsets.rank() == 1 && op.row_offsets.dim(0) >= 1),
             "row_offsets is [experts + 1]");
  check.that(static_cast<bool>(op.source) == static_cast<bool>(op.row_offsets),
             "source and row_offsets come together");
  const Shape shape = op.rows.shape();
  check.operand("rows", op.rows, shape, float_types);
  check.optional("source", op.source, {shape[0]}, {DType::i32});
  check_slot(check, op.slot, op.d_y.dim(0));
  check_gates(check, op.gates, op.slot);
  check.optional("row_offsets", op.row_offsets, op.row_offsets.shape(), {DType::i32});
  check.operand("d_y", op.d_y, {op.d_y.dim(0), shape[1]}, {op.rows.dtype()});
  check.operand("d_rows", op.d_rows, shape, {op.rows.dtype()});
  check.operand("d_gates", op.d_gates, op.gates.shape(), {DType::f32});
  dispatch(stream, op, "CombineBackward");
}

}  // namespace orchard
