#include "train/spread_adafactor.h"

#include "kernels/optimizer/optimizer.h"

namespace orchard {
namespace {

bool columns_are_spread(const ParameterSpec& spec, const ShardingPlace& place) {
  const Place& cut = spec.sharding.expert >= 0 ? place.expert_tensor : place.tensor;
  return spec.sharding.tensor_dim == 1 && cut.size > 1;
}

}  // namespace

std::int64_t SpreadAdaFactor::Entry::first_row() const {
  const Slice& slice = parameter->shard.slice;
  return (slice.dim == 0 ? slice.begin : 0) + parameter->owned.begin;
}

std::int64_t SpreadAdaFactor::Entry::first_col() const {
  const Slice& slice = parameter->shard.slice;
  return slice.dim == 1 ? slice.begin : 0;
}

SpreadAdaFactor::SpreadAdaFactor(Device& device, const FlatShards& shards,
                                 const OptimizerConfig& config)
    : shards_(shards), config_(config) {
  const ParameterStore& store = shards.store();
  // Every rank of a stage packs every parameter of it, so that all agree on the places.
  std::int64_t sums = 0, local = 0, squares = 0, most_cols = 0;
  std::vector<Entry> by_declaration;
  for (const Parameter* p : store.catalogue()) {
    const Shape& shape = p->spec.shape;
    Entry& entry = by_declaration.emplace_back();
    entry.parameter = p;
    if (!store.place().has(p->spec.sharding)) continue;
    entry.factored = config.is_factored(shape);
    entry.square = squares++;
    if (!entry.factored) continue;
    most_cols = std::max(most_cols, shape[1]);
    entry.col_sums = sums;
    sums += shape[1];
    if (columns_are_spread(p->spec, store.place())) {
      entry.row_sums = sums;
      sums += shape[0];
    } else if (p->is_here()) {
      entry.own_row_sums = local;
      local += p->owned.count;
    }
  }
  memory_ = device.allocate(static_cast<std::size_t>(sums + local + squares + most_cols + 1) *
                            sizeof(float));
  const Tensor all = memory_.tensor(DType::f32, {sums + local + squares + most_cols + 1});
  sums_ = all.slice(0, sums);
  local_ = all.slice(sums, local);
  squares_ = all.slice(sums + local, squares);
  discarded_ = all.slice(sums + local + squares, most_cols + 1);
  for (const Parameter& p : store.parameters()) {
    entries_.push_back(by_declaration[p.declared]);
    entries_.back().number = entries_.size() - 1;
  }
}

// Of this rank's rows, over all columns.
Tensor SpreadAdaFactor::row_sums(const Entry& entry) const {
  const std::int64_t rows = entry.parameter->owned.count;
  return entry.row_sums >= 0 ? sums_.slice(entry.row_sums + entry.first_row(), rows)
                             : local_.slice(entry.own_row_sums, rows);
}

void SpreadAdaFactor::sum_squares(Stream& stream, const OptimizerStep& step) const {
  stream.fill_zero(sums_);
  for (const Entry& entry : entries_) {
    const Parameter& p = *entry.parameter;
    if (!entry.factored || p.owned.count == 0) continue;
    const bool counts = p.shard.counts_in_stage();
    const std::int64_t cols = p.shape()[1];
    // A further copy of the same elements needs its rows' sums, unless they come from all ranks.
    if (!counts && entry.row_sums >= 0) continue;
    run(stream,
        AdaFactorSums{.gradients = p.owned.gradient,
                      .row_sums = row_sums(entry),
                      .col_sums = counts ? sums_.slice(entry.col_sums + entry.first_col(), cols)
                                         : discarded_.slice(0, cols),
                      .gradient_scale = step.gradient_scale});
  }
}

void SpreadAdaFactor::measure(Stream& stream, const std::vector<OptimizerSlots>& slots,
                              const OptimizerStep& step) const {
  stream.fill_zero(squares_);
  for (const Entry& entry : entries_) {
    const Parameter& p = *entry.parameter;
    // Without rows of a factored block this rank still keeps its columns' averages.
    if (!entry.factored && p.owned.count == 0) continue;
    const OptimizerSlots& state = slots[entry.number];
    AdaFactorMeasure op{.gradients = p.owned.gradient,
                        .v_row = state.v_row,
                        .v_col = state.v_col,
                        .v = state.v,
                        .squares = p.shard.counts_in_stage() ? squares_.slice(entry.square, 1)
                                                             : discarded_.slice(0, 1),
                        .gradient_scale = step.gradient_scale,
                        .step = step.number};
    if (entry.factored) {
      op.row_sums = row_sums(entry);
      op.col_sums = sums_.slice(entry.col_sums, p.spec.shape[1]);
      op.rows = p.spec.shape[0];
      op.first_col = entry.first_col();
    }
    run(stream, op);
  }
}

void SpreadAdaFactor::update(Stream& stream, const std::vector<OptimizerSlots>& slots,
                             const OptimizerStep& step, ValueGatherer* gatherer) {
  Communicator& ranks = shards_.ranks()[MeshGroup::stage];
  sum_squares(stream, step);
  ranks.all_reduce_sum(stream, sums_).wait(stream);
  measure(stream, slots, step);
  ranks.all_reduce_sum(stream, squares_).wait(stream);
  std::vector<const Entry*> by_declaration(shards_.store().catalogue().size());
  for (const Entry& entry : entries_) by_declaration[entry.parameter->declared] = &entry;
  for (const FlatBucket& bucket : shards_.buckets()) {
    for (const Parameter* p : bucket.parameters) {
      const Entry& entry = *by_declaration[p->declared];
      if (p->owned.count == 0) continue;
      const OptimizerSlots& state = slots[entry.number];
      run(stream, AdaFactorApply{.weights = p->owned.master,
                                 .gradients = p->owned.gradient,
                                 .v_row = state.v_row,
                                 .v_col = state.v_col,
                                 .v = state.v,
                                 .copy = p->owned.copy,
                                 .squares = squares_.slice(entry.square, 1),
                                 .count = p->spec.shape.numel(),
                                 .first_col = entry.factored ? entry.first_col() : 0,
                                 .gradient_scale = step.gradient_scale,
                                 .lr = step.learning_rate,
                                 .clip_threshold = config_.block_clip,
                                 .weight_decay = static_cast<float>(step.learning_rate *
                                                                    config_.decay_of(p->spec))});
    }
    if (gatherer) gatherer->updated(stream, bucket);
  }
}

}  // namespace orchard
