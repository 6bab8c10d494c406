#include "models/moe.h"

#include <optional>

#include "kernels/elementwise/elementwise.h"
#include "kernels/gemm/gemm.h"
#include "kernels/permute/permute.h"
#include "models/fixed_messages.h"

namespace orchard {

// The rows that this rank sends to the experts: all of the micro-batch's, or its share among the
// tensor ranks. Shares are equal but for the last ones.
class MixtureOfExperts::Share {
 public:
  explicit Share(const Pass& pass) : rows_(pass.batch.rows), count_(rows_) {
    if (!pass.parallel || (*pass.parallel)[MeshGroup::tensor].size() == 1) return;
    tensor_ = &(*pass.parallel)[MeshGroup::tensor];
    only_share_here_ = pass.parallel->place().sequence_parallel == SequenceParallel::yes;
    whole_ = of_rank(0).count();
    begin_ = of_rank(tensor_->rank()).begin;
    count_ = of_rank(tensor_->rank()).count();
  }

  std::int64_t count() const { return count_; }
  // Tensor ranks that send the micro-batch's rows together.
  int ranks() const { return tensor_ ? tensor_->size() : 1; }
  // Rows of x: with sequence parallelism every rank has as many, the last ones with padding.
  std::int64_t rows_here() const { return only_share_here_ ? whole_ : rows_; }

  // The share's rows of a tensor that has those that are here, or, of routing, all of them.
  template <class AnyTensor>
  AnyTensor of_here(const AnyTensor& x) const {
    return x.slice(only_share_here_ ? 0 : begin_, count_);
  }
  template <class AnyTensor>
  AnyTensor of_all(const AnyTensor& x) const {
    return x.slice(begin_, count_);
  }

  // [all rows, n] of `mine`, [rows here, n].
  Tensor all_of_here(Pass& pass, ConstTensor mine) const {
    const Tensor all = pass.allocate(mine.dtype(), mine.shape().with(0, whole_ * tensor_->size()));
    tensor_->all_gather(pass.stream, all, mine).wait(pass.stream);
    return all.slice(0, rows_);
  }
  // Fills in the other ranks' rows of x [rows, n], of which this rank has written its share.
  void gather(Pass& pass, Tensor x) const {
    if (!tensor_) return;
    std::vector<std::int64_t> counts(static_cast<std::size_t>(tensor_->size()));
    for (int rank = 0; rank < tensor_->size(); ++rank)
      counts[static_cast<std::size_t>(rank)] = of_rank(rank).count() * x.dim(1);
    tensor_->all_gather(pass.stream, x, of_all(x), counts).wait(pass.stream);
  }
  // Of x [rows here, hidden], of which this rank has written its share, the rest.
  void complete(Pass& pass, Tensor x) const {
    if (only_share_here_) {
      if (count_ < whole_) pass.stream.fill_zero(x.slice(count_, whole_ - count_));
    } else {
      gather(pass, x);
    }
  }

  bool only_share_here() const { return only_share_here_; }

 private:
  RowRange of_rank(int rank) const { return share_of(rows_, rank, tensor_->size()); }

  Communicator* tensor_ = nullptr;  // null: no other rank has these rows
  bool only_share_here_ = false;
  std::int64_t rows_ = 0;   // of the micro-batch
  std::int64_t whole_ = 0;  // rows of a share that is not cut short
  std::int64_t begin_ = 0, count_ = 0;
};

MixtureOfExperts::MixtureOfExperts(ParameterStore& store, const std::string& name,
                                   const DecoderConfig& config)
    : config_(config),
      router_(&store.declare({.name = name + ".router",
                              .shape = {config.moe.experts, config.hidden},
                              .weight_decay = WeightDecay::yes,
                              .sharding = {.gradient = GradientOf::local_rows},
                              .forward_reads = ForwardReads::master})),
      experts_(store, name, config) {}

RouterStatistics MixtureOfExperts::allocate_statistics(Pass& pass) const {
  const std::int64_t rows = pass.batch.rows, sequences = pass.batch.sequences;
  return {.balance_loss = pass.allocate(DType::f32, {sequences}),
          .z_loss = pass.allocate(DType::f32, {sequences}),
          .expert_counts = pass.allocate(DType::i32, {2, config_.moe.experts}),
          .chosen = pass.allocate(DType::i32, {rows, config_.moe.top_k}),
          .margins = pass.allocate(DType::f32, {rows})};
}

void MixtureOfExperts::route(Pass& pass, const Share& share, ConstTensor x, Saved& saved) const {
  const std::int64_t rows = pass.batch.rows, k = config_.moe.top_k;
  const std::int64_t sequences = pass.batch.sequences, experts = config_.moe.experts;
  saved.x_f32 = x;
  if (x.dtype() != DType::f32) {
    const Tensor widened = pass.allocate(DType::f32, x.shape());
    run(pass.stream, Convert{.x = x, .y = widened});
    saved.x_f32 = widened;
  }
  // The router reads the fp32 master weights: two nearly equal scores must not be decided by bf16
  // rounding.
  const Tensor logits = pass.allocate(DType::f32, {x.dim(0), experts});
  run(pass.stream,
      Gemm{.a = saved.x_f32, .b = router_->master, .c = logits, .transpose_b = Transpose::yes});
  saved.router = {.logits = share.only_share_here() ? share.all_of_here(pass, logits) : logits,
                  .sequence_offsets = pass.batch.sequence_offsets,
                  .real_tokens = pass.batch.real_rows,
                  .replay = pass.replay_of(router_),
                  .k = config_.moe.top_k,
                  .capacity_factor = config_.moe.capacity_factor,
                  .balance_counts = config_.moe.balance_counts,
                  .probabilities = pass.allocate(DType::f32, {rows, experts}),
                  .log_sum_exp = pass.allocate(DType::f32, {rows}),
                  .chosen = saved.statistics.chosen,
                  .experts = pass.allocate(DType::i32, {rows, k}),
                  .gates = pass.allocate(DType::f32, {rows, k}),
                  .margins = saved.statistics.margins,
                  .choice_fractions = pass.allocate(DType::f32, {sequences, experts}),
                  .balance_loss = saved.statistics.balance_loss,
                  .z_loss = saved.statistics.z_loss,
                  .expert_counts = saved.statistics.expert_counts};
  run(pass.stream, saved.router);
}

void MixtureOfExperts::plan(Pass& pass, const Share& share, ConstTensor x, Saved& saved) const {
  std::optional<ExpertDispatcher> alone;
  ExpertDispatcher& dispatcher =
      pass.dispatcher ? *pass.dispatcher : alone.emplace(config_.moe.experts);
  const std::int64_t local = dispatcher.placement().local_experts();
  const int parts = dispatcher.placement().parts();
  require(local == experts_.here(),
          "{}: this rank holds {} of {} experts, and tokens are sent to it for {}",
          router_->spec.name, experts_.here(), config_.moe.experts, local);
  require(config_.moe.top_k * parts <= max_slots,
          "moe.top_k = {} times etp = {} is more than the {} rows that a token may have",
          config_.moe.top_k, parts, max_slots);
  const std::int64_t chunks = dispatcher.options().chunks;
  const ConstTensor experts = share.of_all(ConstTensor(saved.router.experts));
  std::vector<ConstTensor> experts_of_parts;
  saved.parts.assign(static_cast<std::size_t>(chunks), {});
  for (std::int64_t i = 0; i < chunks; ++i) {
    const RowRange rows = part_of({0, share.count()}, i, chunks);
    Part& part = saved.parts[static_cast<std::size_t>(i)];
    part.begin = rows.begin;
    part.count = rows.count();
    experts_of_parts.push_back(experts.slice(part.begin, part.count));
  }
  const auto routes =
      dispatcher.plan(pass.stream, pass.arena,
                      {.experts = experts_of_parts,
                       .row_bytes = x.dim(1) * static_cast<std::int64_t>(size_of(x.dtype())),
                       .most_rows = most_rows(pass, share, dispatcher.options())});
  for (std::size_t i = 0; i < routes.size(); ++i) saved.parts[i].routes = routes[i];
}

std::int64_t MixtureOfExperts::most_rows(const Pass& pass, const Share& share,
                                         const ExpertDispatchOptions& options) const {
  const DeviceBatch& batch = pass.batch;
  if (config_.moe.capacity_factor == 0 || options.messages == ExpertMessages::counted ||
      pass.sizes != MicroBatchSizes::alike || batch.rows == 0)
    return 0;
  const CapacityRule rule{.factor = config_.moe.capacity_factor,
                          .experts = config_.moe.experts,
                          .length = batch.rows / batch.sequences};
  return fixed_messages(rule, batch.rows, share.ranks(), options.chunks).rows;
}

Tensor MixtureOfExperts::forward(Pass& pass, ConstTensor x, Saved& saved) const {
  const Share share(pass);
  require(x.dim(0) == share.rows_here(), "{}: x has {} rows of {}, expected {}", router_->spec.name,
          x.dim(0), pass.batch.rows, share.rows_here());
  if (!saved.statistics.chosen) saved.statistics = allocate_statistics(pass);
  route(pass, share, x, saved);
  plan(pass, share, x, saved);

  const ConstTensor own_x = share.of_here(x), gates = share.of_all(ConstTensor(saved.router.gates));
  const Tensor y = pass.allocate_like(x), own_y = share.of_here(y);
  const auto dispatch = [&](const Part& part) {
    return part.routes->dispatch(pass.stream, pass.arena, own_x.slice(part.begin, part.count));
  };
  const auto combine = [&](Part& part, ExpertTransfer& returning) {
    part.results = returning.finish(pass.stream);
    run(pass.stream, CombineForward{.rows = part.results,
                                    .slot = part.routes->slot(),
                                    .gates = gates.slice(part.begin, part.count),
                                    .y = own_y.slice(part.begin, part.count)});
  };
  // While the experts work on a part, the next one comes and the one before goes back.
  std::optional<ExpertTransfer> coming(dispatch(saved.parts.front())), returning;
  for (std::size_t i = 0; i < saved.parts.size(); ++i) {
    Part& part = saved.parts[i];
    const ConstTensor rows = coming->finish(pass.stream);
    if (i + 1 < saved.parts.size()) coming.emplace(dispatch(saved.parts[i + 1]));
    const Tensor results = experts_.forward(
        pass, {rows, part.routes->row_offsets(), part.routes->source()}, part.experts);
    ExpertTransfer sent = part.routes->collect(pass.stream, pass.arena, results);
    if (returning) combine(saved.parts[i - 1], *returning);
    returning.emplace(std::move(sent));
  }
  combine(saved.parts.back(), *returning);
  share.complete(pass, y);
  return y;
}

void MixtureOfExperts::backward_input(Pass& pass, ConstTensor d_y, Saved& saved, Tensor d_x) const {
  const Share share(pass);
  const ConstTensor own_d_y = share.of_here(d_y);
  const ConstTensor gates = share.of_all(ConstTensor(saved.router.gates));
  const Tensor d_gates = pass.allocate(DType::f32, saved.router.gates.shape());
  std::vector<ConstTensor> d_owned;
  for (const Part& part : saved.parts) {
    const Tensor d_rows = pass.allocate_like(part.results);
    run(pass.stream,
        CombineBackward{.rows = part.results,
                        .source = part.routes->padded_source(),
                        .slot = part.routes->slot(),
                        .gates = gates.slice(part.begin, part.count),
                        .row_offsets = part.routes->padded_offsets(),
                        .d_y = own_d_y.slice(part.begin, part.count),
                        .d_rows = d_rows,
                        .d_gates = share.of_all(d_gates).slice(part.begin, part.count)});
    d_owned.push_back(d_rows);
  }
  const auto distribute = [&](std::size_t i) {
    return saved.parts[i].routes->distribute(pass.stream, pass.arena, d_owned[i]);
  };
  std::optional<ExpertTransfer> coming(distribute(0)), returning;
  share.gather(pass, d_gates);
  const Tensor d_router = router_backward(pass, share, d_gates, d_x.dtype(), saved);

  const Tensor own_d_x = share.of_here(d_x);
  const auto add_up = [&](const Part& part, ExpertTransfer& transfer) {
    const ConstTensor d_rows = transfer.finish(pass.stream);
    run(pass.stream, DispatchBackward{.d_rows = d_rows,
                                      .slot = part.routes->slot(),
                                      .d_extra = d_router.slice(part.begin, part.count),
                                      .d_x = own_d_x.slice(part.begin, part.count)});
  };
  for (std::size_t i = 0; i < saved.parts.size(); ++i) {
    const ConstTensor d_results = coming->finish(pass.stream);
    if (i + 1 < saved.parts.size()) coming.emplace(distribute(i + 1));
    const Tensor d_rows = experts_.backward_input(pass, d_results, saved.parts[i].experts);
    ExpertTransfer sent = saved.parts[i].routes->collect(pass.stream, pass.arena, d_rows);
    if (returning) add_up(saved.parts[i - 1], *returning);
    returning.emplace(std::move(sent));
  }
  add_up(saved.parts.back(), *returning);
  share.complete(pass, d_x);
}

Tensor MixtureOfExperts::router_backward(Pass& pass, const Share& share, ConstTensor d_gates,
                                         DType dtype, Saved& saved) const {
  const Tensor d_logits = pass.allocate(DType::f32, saved.router.logits.shape());
  run(pass.stream, RouterBackward{.probabilities = saved.router.probabilities,
                                  .log_sum_exp = saved.router.log_sum_exp,
                                  .chosen = saved.router.chosen,
                                  .experts = saved.router.experts,
                                  .choice_fractions = saved.router.choice_fractions,
                                  .sequence_offsets = saved.router.sequence_offsets,
                                  .real_tokens = saved.router.real_tokens,
                                  .d_gates = d_gates,
                                  .k = config_.moe.top_k,
                                  .balance_counts = config_.moe.balance_counts,
                                  .balance_scale = pass.scales.balance,
                                  .z_scale = pass.scales.z,
                                  .d_logits = d_logits});
  const Tensor own = share.of_all(d_logits);
  saved.d_logits = share.only_share_here() ? own : d_logits;
  const Tensor d_x = pass.allocate(DType::f32, {share.count(), saved.x_f32.dim(1)});
  run(pass.stream, Gemm{.a = own, .b = router_->master, .c = d_x});
  if (dtype == DType::f32) return d_x;
  const Tensor narrowed = pass.allocate(dtype, d_x.shape());
  run(pass.stream, Convert{.x = d_x, .y = narrowed});
  return narrowed;
}

void MixtureOfExperts::backward_weight(Pass& pass, Saved& saved) const {
  run(pass.stream, Gemm{.a = saved.d_logits,
                        .b = saved.x_f32.slice(0, saved.d_logits.dim(0)),
                        .c = router_->gradient,
                        .transpose_a = Transpose::yes,
                        .accumulate = Accumulate::add});
  for (const Part& part : saved.parts) experts_.backward_weight(pass, part.experts);
}

}  // namespace orchard
