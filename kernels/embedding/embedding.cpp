#include "kernels/embedding/embedding.h"

#include "kernels/core/check.h"
#include "kernels/device/device.h"

namespace orchard {
void run(Stream& stream, const EmbeddingForward& op) {
  const Checker check("EmbeddingForward", stream.device().kind());
  check.that(op.table.rank() == 2, "table is [vocab, hidden]");
  check.that(op.sources.rank() == 1, "sources is [tokens]");
  check.that(!op.visual || op.visual.rank() == 2, "visual is [visual_tokens, hidden]");
  check.that(op.shard.holds(op.table.dim(0)), "the table's ids lie inside the vocabulary");
  const std::int64_t hidden = op.table.dim(1);
  check.operand("table", op.table, op.table.shape(), float_types);
  if (op.visual) {
    check.operand("visual", op.visual, {op.visual.dim(0), hidden}, {op.table.dtype()});
  }
  check.operand("sources", op.sources, op.sources.shape(), {DType::i32});
  check.operand("y", op.y, {op.sources.dim(0), hidden}, {op.table.dtype()});
  dispatch(stream, op, "EmbeddingForward");
}

void run(Stream& stream, const EmbeddingBackward& op) {
  const Checker check("EmbeddingBackward", stream.device().kind());
  check.that(op.d_y.rank() == 2, "d_y is [tokens, hidden]");
  check.that(!op.d_table || op.d_table.rank() == 2, "d_table is [vocab, hidden]");
  check.that(!op.d_visual || op.d_visual.rank() == 2, "d_visual is [visual_tokens, hidden]");
  check.that(op.shard.holds(op.d_table ? op.d_table.dim(0) : 0),
             "d_table's ids lie inside the vocabulary");
  const std::int64_t hidden = op.d_y.dim(1);
  check.operand("d_y", op.d_y, op.d_y.shape(), float_types);
  check.operand("sources", op.sources, {op.d_y.dim(0)}, {DType::i32});
  if (op.d_table) {
    check.operand("d_table", op.d_table, {op.d_table.dim(0), hidden}, {DType::f32});
  }
  if (op.d_visual) {
    check.operand("d_visual", op.d_visual, {op.d_visual.dim(0), hidden}, {op.d_y.dtype()});
  }
  dispatch(stream, op, "EmbeddingBackward");
}

void run(Stream& stream, const GatherRows& op) {
  const Checker check("GatherRows", stream.device().kind());
  check.that(op.x.rank() == 2, "x is [rows, cols]");
  check.that(op.indices.rank() == 1, "indices is [n]");
  check.operand("x", op.x, op.x.shape(), float_types);
  check.operand("indices", op.indices, op.indices.shape(), {DType::i32});
  check.operand("y", op.y, {op.indices.dim(0), op.x.dim(1)}, {op.x.dtype()});
  dispatch(stream, op, "GatherRows");
}

void run(Stream& stream, const ScatterRows& op) {
  const Checker check("ScatterRows", stream.device().kind());
  check.that(op.x.rank() == 2, "x is [n, cols]");
  check.that(op.y.rank() == 2, "y is [rows, cols]");
  check.operand("x", op.x, op.x.shape(), float_types);
  check.operand("indices", op.indices, {op.x.dim(0)}, {DType::i32});
  check.operand("y", op.y, {op.y.dim(0), op.x.dim(1)}, {op.x.dtype()});
  dispatch(stream, op, "ScatterRows");
}

void run(Stream& stream, const PrependClassForward& op) {
  const Checker check("PrependClassForward", stream.device().kind());
  const Shape shape = op.patches.shape();
  check.that(shape.rank() == 3, "patches is [images, patches, width]");
  const DType dtype = op.patches.dtype();
  check.operand("patches", op.patches, shape, float_types);
  check.operand("class_token", op.class_token, {shape[2]}, {dtype});
  check.operand("positions", op.positions, {shape[1] + 1, shape[2]}, {dtype});
  check.operand("y", op.y, shape.with(1, shape[1] + 1), {dtype});
  dispatch(stream, op, "PrependClassForward");
}

void run(Stream& stream, const PrependClassBackward& op) {
  const Checker check("PrependClassBackward", stream.device().kind());
  const Shape shape = op.d_patches.shape();
  check.that(shape.rank() == 3, "d_patches is [images, patches, width]");
  check.that(static_cast<bool>(op.d_class_token) == static_cast<bool>(op.d_positions),
             "d_class_token is given exactly when d_positions is");
  check.operand("d_y", op.d_y, shape.with(1, shape[1] + 1), float_types);
  check.operand("d_patches", op.d_patches, shape, {op.d_y.dtype()});
  check.optional("d_class_token", op.d_class_token, {shape[2]}, {DType::f32});
  check.optional("d_positions", op.d_positions, {shape[1] + 1, shape[2]}, {DType::f32});
  dispatch(stream, op, "PrependClassBackward");
}

void run(Stream& stream, const DropClassForward& op) {
  const Checker check("DropClassForward", stream.device().kind());
  const Shape shape = op.y.shape();
  check.that(shape.rank() == 3, "y is [images, patches, width]");
  check.operand("x", op.x, shape.with(1, shape[1] + 1), float_types);
  check.optional("positions", op.positions, {shape[1], shape[2]}, {op.x.dtype()});
  check.operand("y", op.y, shape, {op.x.dtype()});
  dispatch(stream, op, "DropClassForward");
}

void run(Stream& stream, const DropClassBackward& op) {
  const Checker check("DropClassBackward", stream.device().kind());
  const Shape shape = op.d_y.shape();
  check.that(shape.rank() == 3, "d_y is [images, patches, width]");
  check.operand("d_y", op.d_y, shape, float_types);
  check.operand("d_x", op.d_x, shape.with(1, shape[1] + 1), {op.d_y.dtype()});
  check.optional("d_positions", op.d_positions, {shape[1], shape[2]}, {DType::f32});
  dispatch(stream, op, "DropClassBackward");
}

}  // namespace orchard
