#include "kernels/attention/attention.h"

#include "kernels/core/check.h"
#include "kernels/device/device.h"

namespace orchard {
namespace {

constexpr std::int64_t max_head_dim = 256;

// What forward and backward share: q, k, v and the offsets.
template <class Operation>
void check_inputs(const Checker& check, const Operation& op) {
  check.that(op.q.rank() == 3, "q is [query_tokens, heads, head_dim]");
  check.that(op.k.rank() == 3, "k is [key_tokens, kv_heads, head_dim]");
  const Shape queries = op.q.shape(), keys = op.k.shape();
  check.operand("q", op.q, queries, {DType::f32, DType::bf16});
  check.operand("k", op.k, keys.with(2, queries[2]), {op.q.dtype()});
  check.operand("v", op.v, keys, {op.q.dtype()});
  check.that(queries[2] >= 1 && queries[2] <= max_head_dim, "head_dim lies in [1, 256]");
  check.that(keys[1] >= 1 && queries[1] % keys[1] == 0, "heads is a multiple of kv_heads");
  check.that(op.scale > 0, "scale is above 0");
  check.that(op.query_offsets.rank() == 1 && op.query_offsets.dim(0) >= 1,
             "query_offsets is [documents + 1]");
  check.operand("query_offsets", op.query_offsets, op.query_offsets.shape(), {DType::i32});
  check.optional("key_offsets", op.key_offsets, op.query_offsets.shape(), {DType::i32});
}

}  // namespace

void run(Stream& stream, const AttentionForward& op) {
  const Checker check("AttentionForward", stream.device().kind());
  check_inputs(check, op);
  const Shape shape = op.q.shape();
  check.operand("out", op.out, shape, {op.q.dtype()});
  check.operand("log_sum_exp", op.log_sum_exp, {shape[0], shape[1]}, {DType::f32});
  dispatch(stream, op, "AttentionForward");
}

void run(Stream& stream, const AttentionBackward& op) {
  const Checker check("AttentionBackward", stream.device().kind());
  check_inputs(check, op);
  const Shape shape = op.q.shape();
  check.operand("out", op.out, shape, {op.q.dtype()});
  check.operand("log_sum_exp", op.log_sum_exp, {shape[0], shape[1]}, {DType::f32});
  check.operand("d_out", op.d_out, shape, {op.q.dtype()});
  check.operand("d_q", op.d_q, shape, {op.q.dtype()});
  check.operand("d_k", op.d_k, op.k.shape(), {op.q.dtype()});
  check.operand("d_v", op.d_v, op.k.shape(), {op.q.dtype()});
  dispatch(stream, op, "AttentionBackward");
}

}  // namespace orchard
