#include "kernels/router/router.h"

#include <algorithm>

#include "kernels/core/check.h"
#include "kernels/device/device.h"

namespace orchard {
namespace {

void check_top_k(std::string_view operation, int k, std::int64_t experts) {
  require(k >= 1 && k <= std::min<std::int64_t>(max_top_k, experts),
          "{}: k is {}, but must be 1 ... {} for {} experts", operation, k,
          std::min<std::int64_t>(max_top_k, experts), experts);
}

}  // namespace

void run(Stream& stream, const RouterForward& op) {
  const Checker check("RouterForward", stream.device().kind());
  const Shape shape = op.logits.shape();
  check.that(shape.rank() == 2, "logits is [tokens, experts]");
  check.that(op.real_tokens.rank() == 1, "real_tokens is [sequences]");
  check_top_k("RouterForward", op.k, shape[1]);
  check.that(op.capacity_factor >= 0, "capacity_factor is at least 0 (0: dropless)");
  const std::int64_t tokens = shape[0], experts = shape[1], sequences = op.real_tokens.dim(0);
  check.operand("logits", op.logits, shape, {DType::f32});
  check.operand("sequence_offsets", op.sequence_offsets, {sequences + 1}, {DType::i32});
  check.operand("real_tokens", op.real_tokens, {sequences}, {DType::i32});
  check.optional("replay", op.replay, {tokens, op.k}, {DType::i32});
  check.operand("probabilities", op.probabilities, shape, {DType::f32});
  check.operand("log_sum_exp", op.log_sum_exp, {tokens}, {DType::f32});
  check.operand("chosen", op.chosen, {tokens, op.k}, {DType::i32});
  check.operand("experts", op.experts, {tokens, op.k}, {DType::i32});
  check.operand("gates", op.gates, {tokens, op.k}, {DType::f32});
  check.optional("margins", op.margins, {tokens}, {DType::f32});
  check.operand("choice_fractions", op.choice_fractions, {sequences, experts}, {DType::f32});
  check.operand("balance_loss", op.balance_loss, {sequences}, {DType::f32});
  check.operand("z_loss", op.z_loss, {sequences}, {DType::f32});
  check.operand("expert_counts", op.expert_counts, {2, experts}, {DType::i32});
  dispatch(stream, op, "RouterForward");
}

void run(Stream& stream, const RouterBackward& op) {
  const Checker check("RouterBackward", stream.device().kind());
  const Shape shape = op.probabilities.shape();
  check.that(shape.rank() == 2, "probabilities is [tokens, experts]");
  check.that(op.real_tokens.rank() == 1, "real_tokens is [sequences]");
  check_top_k("RouterBackward", op.k, shape[1]);
  const std::int64_t tokens = shape[0], experts = shape[1], sequences = op.real_tokens.dim(0);
  check.operand("probabilities", op.probabilities, shape, {DType::f32});
  check.operand("log_sum_exp", op.log_sum_exp, {tokens}, {DType::f32});
  check.operand("chosen", op.chosen, {tokens, op.k}, {DType::i32});
  check.operand("experts", op.experts, {tokens, op.k}, {DType::i32});
  check.operand("choice_fractions", op.choice_fractions, {sequences, experts}, {DType::f32});
  check.operand("sequence_offsets", op.sequence_offsets, {sequences + 1}, {DType::i32});
  check.operand("real_tokens", op.real_tokens, {sequences}, {DType::i32});
  check.operand("d_gates", op.d_gates, {tokens, op.k}, {DType::f32});
  check.optional("balance_scale", op.balance_scale, {1}, {DType::f32});
  check.optional("z_scale", op.z_scale, {1}, {DType::f32});
  check.operand("d_logits", op.d_logits, shape, {DType::f32});
  dispatch(stream, op, "RouterBackward");
}

}  // namespace orchard
