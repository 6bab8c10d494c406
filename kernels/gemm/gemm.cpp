#include "kernels/gemm/gemm.h"

#include "kernels/core/check.h"
#include "kernels/device/device.h"

namespace orchard {
namespace {

constexpr std::initializer_list<DType> activations = {DType::f32, DType::bf16};

// [rows, cols], or its transpose.
Shape matrix(std::int64_t rows, std::int64_t cols, Transpose transpose) {
  return transpose == Transpose::yes ? Shape{cols, rows} : Shape{rows, cols};
}

// c may be f32 or, when the inputs are, bf16: a list with the input's dtype and f32.
std::initializer_list<DType> result_dtypes(DType in) {
  static constexpr std::initializer_list<DType> only_f32 = {DType::f32};
  return in == DType::bf16 ? activations : only_f32;
}

constexpr bool reads_other(EpilogueKind kind) {
  return kind == EpilogueKind::residual || kind == EpilogueKind::silu_gate;
}

constexpr bool has_backward(EpilogueKind kind) {
  return kind == EpilogueKind::quick_gelu || kind == EpilogueKind::silu_gate;
}

// An operand whose rows the groups have: as many as they, or any number for `source` to choose from.
void check_rows(const Checker& check, const char* name, const ConstTensor& x, const Shape& shape,
                std::initializer_list<DType> dtypes, const ConstTensor& source) {
  check.optional("source", source, {shape[0]}, {DType::i32});
  check.operand(name, x, source ? shape.with(0, x.dim(0)) : shape, dtypes);
}

template <class Operation>
void check_epilogue(const Checker& check, const Operation& op) {
  const auto& [kind, other, pre] = op.epilogue;
  check.that(reads_other(kind) || !other, "the epilogue reads no other");
  check.that(has_backward(kind) || !pre, "the epilogue's backward needs no pre");
  if (kind == EpilogueKind::none) return;
  check.that(op.accumulate == Accumulate::overwrite, "an epilogue does not accumulate");
  check.that(op.c.dtype() == op.a.dtype(), "with an epilogue c has a's dtype");
  if (reads_other(kind)) check.operand("other", other, op.c.shape(), {op.c.dtype()});
  check.optional("pre", pre, op.c.shape(), {op.c.dtype()});
}

}  // namespace

void run(Stream& stream, const Gemm& op) {
  const Checker check("Gemm", stream.device().kind());
  const int rank = op.c.rank();
  check.that((rank == 2 || rank == 3) && op.a.rank() == rank && op.b.rank() == rank,
             "a, b and c are matrices, or batches of matrices");
  const auto [m, n, k, batch] = sizes_of(op);
  const auto operand = [&, batch = batch](std::int64_t rows, std::int64_t cols, Transpose t) {
    const Shape one = matrix(rows, cols, t);
    return rank == 2 ? one : Shape{batch, one[0], one[1]};
  };
  check.operand("a", op.a, operand(m, k, op.transpose_a), activations);
  check.operand("b", op.b, operand(k, n, op.transpose_b), {op.a.dtype()});
  check.operand("c", op.c, op.c.shape(), result_dtypes(op.a.dtype()));
  check.optional("bias", op.bias, {n}, {op.a.dtype()});
  check_epilogue(check, op);
  dispatch(stream, op, "Gemm");
}

void run(Stream& stream, const GroupedGemm& op) {
  const Checker check("GroupedGemm", stream.device().kind());
  check.that(op.a.rank() == 2 && op.b.rank() == 3 && op.c.rank() == 2,
             "a and c are matrices, b is one matrix a group");
  const std::int64_t groups = op.b.dim(0), k = op.a.dim(1), n = op.c.dim(1);
  const Shape b = matrix(k, n, op.transpose_b);
  check_rows(check, "a", op.a, {op.c.dim(0), k}, activations, op.source);
  check.operand("b", op.b, {groups, b[0], b[1]}, {op.a.dtype()});
  check.operand("c", op.c, op.c.shape(), result_dtypes(op.a.dtype()));
  check.operand("row_offsets", op.row_offsets, {groups + 1}, {DType::i32});
  check_epilogue(check, op);
  dispatch(stream, op, "GroupedGemm");
}

void run(Stream& stream, const GroupedGemmWeightGradient& op) {
  const Checker check("GroupedGemmWeightGradient", stream.device().kind());
  check.that(op.a.rank() == 2 && op.b.rank() == 2 && op.d_b.rank() == 3,
             "a and b are matrices, d_b is one matrix a group");
  check.operand("a", op.a, {op.a.dim(0), op.d_b.dim(1)}, activations);
  check_rows(check, "b", op.b, {op.a.dim(0), op.d_b.dim(2)}, {op.a.dtype()}, op.source);
  check.operand("d_b", op.d_b, op.d_b.shape(), {DType::f32});
  check.operand("row_offsets", op.row_offsets, {op.d_b.dim(0) + 1}, {DType::i32});
  dispatch(stream, op, "GroupedGemmWeightGradient");
}

}  // namespace orchard
