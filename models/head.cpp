#include "models/head.h"

#include <algorithm>

#include "kernels/embedding/embedding.h"
#include "kernels/gemm/gemm.h"
#include "kernels/loss/loss.h"

namespace orchard {
namespace {

// Large enough for full GEMM speed, small enough for a chunk of logits to stay near the caches (16
// MB in fp32).
std::int64_t chunk_rows(std::int64_t vocabulary) {
  const std::int64_t rows = (std::int64_t{4} << 20) / vocabulary;
  return std::clamp(rows / target_multiple * target_multiple, target_multiple, std::int64_t{2048});
}

}  // namespace

void LanguageModelHead::forward(Pass& pass, ConstTensor h, Saved& saved, Purpose purpose) const {
  const std::int64_t targets = pass.batch.target_rows.dim(0), hidden = h.dim(1);
  const std::int64_t vocabulary = table_->value.dim(0);
  const Tensor losses = pass.allocate(DType::f32, {targets});
  saved.losses = losses;
  Tensor d_target;
  if (purpose == Purpose::train)
    saved.d_target = d_target = pass.allocate(h.dtype(), {targets, hidden});
  if (targets == 0) return;

  const ArenaScope scope(pass.arena);
  const Tensor rows = pass.allocate(h.dtype(), {targets, hidden});
  run(pass.stream, GatherRows{.x = h, .indices = pass.batch.target_rows, .y = rows});
  const std::int64_t chunk = std::min(chunk_rows(vocabulary), targets);
  const Tensor logits = pass.allocate(DType::f32, {chunk, vocabulary});
  const Tensor d_logits =
      h.dtype() == DType::f32 ? logits : pass.allocate(h.dtype(), {chunk, vocabulary});
  for (std::int64_t begin = 0; begin < targets; begin += chunk) {
    const std::int64_t n = std::min(chunk, targets - begin);
    const ConstTensor x = rows.slice(begin, n);
    run(pass.stream,
        Gemm{.a = x, .b = table_->value, .c = logits.slice(0, n), .transpose_b = Transpose::yes});
    CrossEntropy loss{.logits = logits.slice(0, n),
                      .targets = pass.batch.target_ids.slice(begin, n),
                      .scale = pass.scales.target,
                      .losses = losses.slice(begin, n)};
    if (purpose == Purpose::train) loss.d_logits = d_logits.slice(0, n);
    run(pass.stream, loss);
    if (purpose != Purpose::train) continue;
    run(pass.stream, Gemm{.a = loss.d_logits, .b = table_->value, .c = d_target.slice(begin, n)});
    run(pass.stream, Gemm{.a = loss.d_logits,
                          .b = x,
                          .c = table_->gradient,
                          .transpose_a = Transpose::yes,
                          .accumulate = Accumulate::add});
  }
}

void LanguageModelHead::backward_input(Pass& pass, Saved& saved, Tensor d_h) const {
  run(pass.stream, ScatterRows{.x = saved.d_target, .indices = pass.batch.target_rows, .y = d_h});
}

Tensor LanguageModelHead::logits(Pass& pass, ConstTensor h) const {
  const Tensor y = pass.allocate(DType::f32, {h.dim(0), table_->value.dim(0)});
  run(pass.stream, Gemm{.a = h, .b = table_->value, .c = y, .transpose_b = Transpose::yes});
  return y;
}

}  // namespace orchard
