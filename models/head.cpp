#include "models/head.h"

#include <algorithm>

#include "kernels/embedding/embedding.h"
#include "kernels/gemm/gemm.h"
#include "models/tensor_parallel.h"

namespace orchard {
namespace {

// Large enough for full GEMM speed, small enough for a chunk of logits to stay near a CPU's caches (16
// MB in fp32). A GPU wants more tiles than it has multiprocessors, and has the memory (256 MB).
std::int64_t chunk_rows(DeviceKind device, std::int64_t vocabulary) {
  const bool host = device == DeviceKind::cpu;
  const std::int64_t rows = (std::int64_t{host ? 4 : 64} << 20) / vocabulary;
  return std::clamp(rows / target_multiple * target_multiple, target_multiple,
                    std::int64_t{host ? 2048 : 16384});
}

}  // namespace

VocabularyShard shard_of_vocabulary(const Parameter& table) {
  const std::int64_t vocabulary = table.spec.shape[0];
  if (table.shard.slice.count == vocabulary) return {};
  return {.first_id = table.shard.slice.begin, .vocabulary = vocabulary};
}

Residual LanguageModelHead::forward(Pass& pass, const Residual& stream, Saved& saved) const {
  const ConstTensor h = stream.sum;
  const bool training = pass.purpose == Purpose::train;
  const std::int64_t targets = pass.batch.target_rows.dim(0), hidden = h.dim(1);
  const Tensor losses = pass.allocate(DType::f32, {targets});
  saved.losses = losses;
  // A part of a sum where each rank has a part of the vocabulary.
  const bool alone = tensor_place(pass).size == 1;
  Tensor d_target;
  if (training)
    saved.d_target = d_target = pass.allocate(alone ? h.dtype() : DType::f32, {targets, hidden});
  if (targets == 0) return {};

  const ArenaScope scope(pass.arena);
  const Tensor rows = pass.allocate(h.dtype(), {targets, hidden});
  {
    const ArenaScope gathered(pass.arena);
    run(pass.stream, GatherRows{.x = gather_rows(pass, h, pass.batch.rows),
                                .indices = pass.batch.target_rows,
                                .y = rows});
  }
  const std::int64_t vocabulary = table_->value.dim(0);  // this rank's share of it
  const std::int64_t chunk = std::min(chunk_rows(h.device(), vocabulary), targets);
  const Tensor logits = pass.allocate(DType::f32, {chunk, vocabulary});
  const Tensor d_logits =
      h.dtype() == DType::f32 ? logits : pass.allocate(h.dtype(), {chunk, vocabulary});
  for (std::int64_t begin = 0; begin < targets; begin += chunk) {
    const std::int64_t n = std::min(chunk, targets - begin);
    const ConstTensor x = rows.slice(begin, n);
    run(pass.stream,
        Gemm{.a = x, .b = table_->value, .c = logits.slice(0, n), .transpose_b = Transpose::yes});
    const CrossEntropy loss{.logits = logits.slice(0, n),
                            .targets = pass.batch.target_ids.slice(begin, n),
                            .scale = pass.scales.target,
                            .losses = losses.slice(begin, n),
                            .d_logits = training ? d_logits.slice(0, n) : Tensor()};
    if (alone) {
      run(pass.stream, loss);
    } else {
      run_sharded(pass, loss, logits.slice(0, n));
    }
    if (!training) continue;
    run(pass.stream, Gemm{.a = loss.d_logits, .b = table_->value, .c = d_target.slice(begin, n)});
    run(pass.stream, Gemm{.a = loss.d_logits,
                          .b = x,
                          .c = table_->tied_gradient,
                          .transpose_a = Transpose::yes,
                          .accumulate = Accumulate::add});
  }
  return {};
}

void LanguageModelHead::run_sharded(Pass& pass, const CrossEntropy& loss,
                                    Tensor exponentials) const {
  const Place place = tensor_place(pass);
  const std::int64_t rows = loss.targets.dim(0);
  const VocabularyShard shard = shard_of_vocabulary(*table_);
  const ArenaScope scope(pass.arena);
  const Tensor all = pass.allocate(DType::f32, {place.size, rows, softmax_statistics});
  const Tensor mine = all.slice(place.index, 1).reshape({rows, softmax_statistics});
  run(pass.stream, SoftmaxOfShard{.logits = loss.logits,
                                  .targets = loss.targets,
                                  .shard = shard,
                                  .statistics = mine,
                                  .exponentials = loss.d_logits ? exponentials : Tensor()});
  (*pass.parallel)[MeshGroup::tensor].all_gather(pass.stream, all, mine).wait(pass.stream);
  run(pass.stream, CrossEntropyOfShards{
                       .statistics = all,
                       .targets = loss.targets,
                       .index = place.index,
                       .shard = shard,
                       .scale = loss.scale,
                       .losses = loss.losses,
                       .exponentials = loss.d_logits ? ConstTensor(exponentials) : ConstTensor(),
                       .d_logits = loss.d_logits});
}

void LanguageModelHead::backward_input(Pass& pass, ConstTensor, Saved& saved, Tensor d_h) const {
  RowSum sum(pass, pass.batch.rows, d_h);
  run(pass.stream,
      ScatterRows{.x = saved.d_target, .indices = pass.batch.target_rows, .y = sum.part()});
  sum.finish();
}

Tensor LanguageModelHead::last_logits(Pass& pass, ConstTensor h) const {
  const Place place = tensor_place(pass);
  const std::int64_t share = table_->value.dim(0);
  const Tensor all = pass.allocate(DType::f32, {place.size, share});
  const Tensor mine = all.slice(place.index, 1);
  run(pass.stream, Gemm{.a = gather_rows(pass, h, pass.batch.rows).slice(pass.batch.rows - 1, 1),
                        .b = table_->value,
                        .c = mine,
                        .transpose_b = Transpose::yes});
  if (place.size > 1)
    (*pass.parallel)[MeshGroup::tensor].all_gather(pass.stream, all, mine).wait(pass.stream);
  return all.reshape({1, place.size * share});
}

}  // namespace orchard
