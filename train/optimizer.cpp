#include "train/optimizer.h"

#include "kernels/optimizer/optimizer.h"

namespace orchard {
namespace {

// Elements of a slot, rounded up so that every slot starts on a cache line.
std::int64_t padded(std::int64_t elements) {
  return (elements + 15) / 16 * 16;
}

Shape owned_shape(const Parameter& p) {
  return p.shape().with(0, p.owned.count);
}

// The slots of a parameter's owned rows, each made by take(shape).
template <class Take>
OptimizerSlots make_slots(const Parameter& p, const OptimizerConfig& config, const Take& take) {
  const Shape shape = owned_shape(p);
  OptimizerSlots slots;
  if (config.kind == OptimizerKind::adamw) slots.m = take(shape);
  if (config.is_factored(p.spec.shape)) {
    slots.v_row = take({shape[0]});
    slots.v_col = take({p.spec.shape[1]});
  } else {
    slots.v = take(shape);
  }
  return slots;
}

Tensor flat(const Tensor& tensor) {
  return tensor.reshape({tensor.shape().numel()});
}

}  // namespace

Optimizer::Optimizer(Device& device, Stream& stream, ParameterStore& store,
                     const OptimizerConfig& config, const FlatShards* shards)
    : store_(store), config_(config), shards_(shards), numbers_(store.catalogue().size()) {
  allocate(device, stream);
  const bool is_spread = shards && shards->ranks()[MeshGroup::stage].size() > 1;
  if (config.kind == OptimizerKind::adafactor && is_spread)
    spread_.emplace(device, *shards, config);
}

void Optimizer::allocate(Device& device, Stream& stream) {
  std::int64_t elements = 0;
  for (const Parameter& p : store_.parameters()) {
    make_slots(p, config_, [&](const Shape& shape) {
      elements += padded(shape.numel());
      return Tensor();
    });
  }
  memory_ = device.allocate(static_cast<std::size_t>(elements) * sizeof(float));
  const Tensor all = memory_.tensor(DType::f32, {elements});
  stream.fill_zero(all);
  std::int64_t next = 0;
  for (const Parameter& p : store_.parameters()) {
    numbers_[p.declared] = slots_.size();
    slots_.push_back(make_slots(p, config_, [&](const Shape& shape) {
      const Tensor slot = all.slice(next, shape.numel()).reshape(shape);
      next += padded(shape.numel());
      return slot;
    }));
  }
}

void Optimizer::update(Stream& stream, double learning_rate, ConstTensor gradient_scale,
                       std::int64_t step, ValueGatherer* gatherer) {
  const OptimizerStep now{
      .learning_rate = learning_rate, .gradient_scale = gradient_scale, .number = step};
  if (spread_) return spread_->update(stream, slots_, now, gatherer);
  if (!shards_) {
    for (const Parameter& p : store_.parameters()) update_rows(stream, p, now);
    return;
  }
  for (const FlatBucket& bucket : shards_->buckets()) {
    for (const Parameter* p : bucket.parameters) update_rows(stream, *p, now);
    if (gatherer) gatherer->updated(stream, bucket);
  }
}

void Optimizer::update_rows(Stream& stream, const Parameter& p, const OptimizerStep& step) const {
  if (p.owned.count == 0) return;
  const OptimizerSlots& slots = slots_of(p);
  const double decay = config_.decay_of(p.spec);
  if (config_.kind == OptimizerKind::adamw) {
    run(stream, AdamW{.weights = flat(p.owned.master),
                      .gradients = flat(p.owned.gradient),
                      .m = flat(slots.m),
                      .v = flat(slots.v),
                      .copy = p.owned.copy ? flat(p.owned.copy) : Tensor(),
                      .gradient_scale = step.gradient_scale,
                      .lr = static_cast<float>(step.learning_rate),
                      .beta1 = static_cast<float>(config_.beta1),
                      .beta2 = static_cast<float>(config_.beta2),
                      .epsilon = static_cast<float>(config_.epsilon),
                      .weight_decay = static_cast<float>(decay),
                      .step = step.number});
  } else {
    run(stream, AdaFactor{.weights = p.owned.master,
                          .gradients = p.owned.gradient,
                          .v_row = slots.v_row,
                          .v_col = slots.v_col,
                          .v = slots.v,
                          .copy = p.owned.copy,
                          .gradient_scale = step.gradient_scale,
                          .lr = static_cast<float>(step.learning_rate),
                          .clip_threshold = static_cast<float>(config_.block_clip),
                          .weight_decay = static_cast<float>(step.learning_rate * decay),
                          .step = step.number});
  }
}

std::vector<Optimizer::NamedShard> Optimizer::state() const {
  std::vector<NamedShard> state;
  for (const Parameter* p : store_.catalogue()) {
    const OptimizerSlots slots = p->is_here() ? slots_of(*p) : OptimizerSlots{};
    const bool is_first = p->is_here() && p->shard.counts();
    const auto add = [&](const char* prefix, const TensorShard& shard, const Tensor& tensor,
                         bool counts) {
      state.push_back({.name = prefix + p->spec.name,
                       .shard = shard,
                       .tensor = tensor,
                       .counted = counts ? Counted::yes : Counted::no});
    };
    const TensorShard rows = owned_shard(*p);
    if (config_.kind == OptimizerKind::adamw) add("m/", rows, slots.m, is_first);
    if (!config_.is_factored(p->spec.shape)) {
      add("v/", rows, slots.v, is_first);
      continue;
    }
    const Shape& shape = p->spec.shape;
    // Where columns are cut, all ranks that share them have the averages of all their rows.
    const Slice& slice = p->shard.slice;
    const bool cut_by_rows = slice.dim == 0;
    add("v_row/",
        {.shape = {shape[0]},
         .slice = cut_by_rows ? Slice{0, slice.begin, slice.count} : whole({shape[0]}),
         .begin = rows.begin,
         .count = rows.count},
        slots.v_row, is_first && (cut_by_rows || slice.begin == 0));
    // All columns are on every rank, rows or none: those of the first rank of all count.
    const bool is_first_holder =
        is_first && slice.begin == 0 && (!shards_ || shards_->is_first_owner(*p));
    add("v_col/",
        {.shape = {shape[1]},
         .slice = whole({shape[1]}),
         .begin = 0,
         .count = p->is_here() ? shape[1] : 0},
        slots.v_col, is_first_holder);
  }
  return state;
}

}  // namespace orchard
