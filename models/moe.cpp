#include "models/moe.h"

#include <cmath>

#include "kernels/activation/activation.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/gemm/gemm.h"
#include "kernels/permute/permute.h"

namespace orchard {
namespace {

// The experts' matrices of one kind, one after the other, so that they form a stack.
const Parameter* declare_experts(ParameterStore& store, const std::string& name, const char* matrix,
                                 Shape shape, std::int64_t experts, double std, int tensor_dim) {
  const Parameter* first = nullptr;
  for (std::int64_t e = 0; e < experts; ++e) {
    const Parameter& p = store.declare({.name = fmt::format("{}.experts.{}.{}", name, e, matrix),
                                        .shape = shape,
                                        .std = std,
                                        .weight_decay = WeightDecay::yes,
                                        .sharding = {.tensor_dim = tensor_dim,
                                                     .expert = static_cast<int>(e),
                                                     .experts = static_cast<int>(experts)}});
    if (!first) first = &p;
  }
  return first;
}

}  // namespace

MixtureOfExperts::MixtureOfExperts(ParameterStore& store, const std::string& name,
                                   const DecoderConfig& config)
    : store_(store),
      config_(config),
      router_(&store.declare({.name = name + ".router",
                              .shape = {config.moe.experts, config.hidden},
                              .weight_decay = WeightDecay::yes,
                              .forward_reads = ForwardReads::master})),
      gate_(declare_experts(store, name, "w_gate", {config.ffn, config.hidden}, config.moe.experts,
                            0.02, 0)),
      up_(declare_experts(store, name, "w_up", {config.ffn, config.hidden}, config.moe.experts,
                          0.02, 0)),
      down_(declare_experts(store, name, "w_down", {config.hidden, config.ffn}, config.moe.experts,
                            0.02 / std::sqrt(2.0 * static_cast<double>(config.layers)), 1)) {}

ConstTensor MixtureOfExperts::experts(const Parameter* first) const {
  return store_.stacked(*first, config_.moe.experts, ParameterStore::Field::value);
}

Tensor MixtureOfExperts::expert_gradients(const Parameter* first) const {
  return store_.stacked(*first, config_.moe.experts, ParameterStore::Field::gradient);
}

RouterStatistics MixtureOfExperts::allocate_statistics(Pass& pass) const {
  const std::int64_t rows = pass.batch.rows, sequences = pass.batch.sequences;
  return {.balance_loss = pass.allocate(DType::f32, {sequences}),
          .z_loss = pass.allocate(DType::f32, {sequences}),
          .expert_counts = pass.allocate(DType::i32, {2, config_.moe.experts}),
          .chosen = pass.allocate(DType::i32, {rows, config_.moe.top_k}),
          .margins = pass.allocate(DType::f32, {rows})};
}

Tensor MixtureOfExperts::forward(Pass& pass, ConstTensor x, Saved& saved) const {
  const std::int64_t rows = x.dim(0), k = config_.moe.top_k, experts_count = config_.moe.experts;
  const std::int64_t sequences = pass.batch.sequences;
  if (!saved.statistics.chosen) saved.statistics = allocate_statistics(pass);
  saved.x = x;
  saved.x_f32 = x;
  if (x.dtype() != DType::f32) {
    const Tensor widened = pass.allocate(DType::f32, x.shape());
    run(pass.stream, Convert{.x = x, .y = widened});
    saved.x_f32 = widened;
  }
  // The router reads the fp32 master weights: two nearly equal scores must not be decided by bf16
  // rounding.
  const Tensor logits = pass.allocate(DType::f32, {rows, experts_count});
  run(pass.stream,
      Gemm{.a = saved.x_f32, .b = router_->master, .c = logits, .transpose_b = Transpose::yes});
  saved.router = {.logits = logits,
                  .sequence_offsets = pass.batch.sequence_offsets,
                  .real_tokens = pass.batch.real_rows,
                  .replay = pass.replay_of(router_),
                  .k = config_.moe.top_k,
                  .capacity_factor = config_.moe.capacity_factor,
                  .balance_counts = config_.moe.balance_counts,
                  .probabilities = pass.allocate(DType::f32, {rows, experts_count}),
                  .log_sum_exp = pass.allocate(DType::f32, {rows}),
                  .chosen = saved.statistics.chosen,
                  .experts = pass.allocate(DType::i32, {rows, k}),
                  .gates = pass.allocate(DType::f32, {rows, k}),
                  .margins = saved.statistics.margins,
                  .choice_fractions = pass.allocate(DType::f32, {sequences, experts_count}),
                  .balance_loss = saved.statistics.balance_loss,
                  .z_loss = saved.statistics.z_loss,
                  .expert_counts = saved.statistics.expert_counts};
  run(pass.stream, saved.router);

  const std::int64_t max_rows = max_expert_rows(rows, k, experts_count);
  const Tensor row_offsets = pass.allocate(DType::i32, {experts_count + 1});
  const Tensor source = pass.allocate(DType::i32, {max_rows});
  const Tensor slot = pass.allocate(DType::i32, {rows, k});
  run(pass.stream, PermutePlan{.experts = saved.router.experts,
                               .row_offsets = row_offsets,
                               .source = source,
                               .slot = slot});
  saved.row_offsets = row_offsets;
  saved.source = source;
  saved.slot = slot;

  const Tensor dispatched = pass.allocate(x.dtype(), {max_rows, config_.hidden});
  run(pass.stream,
      DispatchForward{.x = x, .source = source, .row_offsets = row_offsets, .rows = dispatched});
  const auto grouped = [&](ConstTensor a, const Parameter* weights, std::int64_t out) {
    const Tensor c = pass.allocate(x.dtype(), {max_rows, out});
    run(pass.stream, GroupedGemm{.a = a,
                                 .b = experts(weights),
                                 .c = c,
                                 .row_offsets = row_offsets,
                                 .transpose_b = Transpose::yes});
    return c;
  };
  saved.rows = dispatched;
  saved.gate = grouped(dispatched, gate_, config_.ffn);
  saved.up = grouped(dispatched, up_, config_.ffn);
  const Tensor product = pass.allocate_like(saved.gate);
  run(pass.stream, SwiGluForward{.gate = saved.gate,
                                 .up = saved.up,
                                 .y = product,
                                 .row_count = row_offsets.slice(experts_count, 1)});
  saved.product = product;
  saved.results = grouped(product, down_, config_.hidden);
  const Tensor y = pass.allocate_like(x);
  run(pass.stream,
      CombineForward{.rows = saved.results, .slot = slot, .gates = saved.router.gates, .y = y});
  return y;
}

void MixtureOfExperts::backward_input(Pass& pass, ConstTensor d_y, Saved& saved, Tensor d_x) const {
  const Tensor d_results = pass.allocate_like(saved.results);
  const Tensor d_gates = pass.allocate(DType::f32, saved.router.gates.shape());
  run(pass.stream, CombineBackward{.rows = saved.results,
                                   .source = saved.source,
                                   .slot = saved.slot,
                                   .gates = saved.router.gates,
                                   .row_offsets = saved.row_offsets,
                                   .d_y = d_y,
                                   .d_rows = d_results,
                                   .d_gates = d_gates});
  const auto grouped = [&](ConstTensor a, const Parameter* weights, Tensor c,
                           Accumulate accumulate) {
    run(pass.stream, GroupedGemm{.a = a,
                                 .b = experts(weights),
                                 .c = c,
                                 .row_offsets = saved.row_offsets,
                                 .accumulate = accumulate});
  };
  const Tensor d_up = pass.allocate_like(saved.gate);
  grouped(d_results, down_, d_up, Accumulate::overwrite);  // d_product, which d_up replaces below
  const Tensor d_gate = pass.allocate_like(saved.gate);
  run(pass.stream, SwiGluBackward{.gate = saved.gate,
                                  .up = saved.up,
                                  .d_y = d_up,
                                  .d_gate = d_gate,
                                  .d_up = d_up,
                                  .row_count = saved.row_offsets.slice(config_.moe.experts, 1)});
  const Tensor d_rows = pass.allocate_like(saved.rows);
  grouped(d_gate, gate_, d_rows, Accumulate::overwrite);
  grouped(d_up, up_, d_rows, Accumulate::add);
  saved.d_results = d_results;
  saved.d_gate = d_gate;
  saved.d_up = d_up;

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
  saved.d_logits = d_logits;
  Tensor d_router = pass.allocate(DType::f32, saved.x.shape());
  run(pass.stream, Gemm{.a = d_logits, .b = router_->master, .c = d_router});
  if (d_x.dtype() != DType::f32) {
    const Tensor narrowed = pass.allocate_like(d_x);
    run(pass.stream, Convert{.x = d_router, .y = narrowed});
    d_router = narrowed;
  }
  run(pass.stream,
      DispatchBackward{.d_rows = d_rows, .slot = saved.slot, .d_extra = d_router, .d_x = d_x});
}

void MixtureOfExperts::backward_weight(Pass& pass, Saved& saved) const {
  run(pass.stream, Gemm{.a = saved.d_logits,
                        .b = saved.x_f32,
                        .c = router_->gradient,
                        .transpose_a = Transpose::yes,
                        .accumulate = Accumulate::add});
  const auto accumulate = [&](ConstTensor d_y, ConstTensor x, const Parameter* weights) {
    run(pass.stream,
        GroupedGemmWeightGradient{
            .a = d_y, .b = x, .d_b = expert_gradients(weights), .row_offsets = saved.row_offsets});
  };
  accumulate(saved.d_gate, saved.rows, gate_);
  accumulate(saved.d_up, saved.rows, up_);
  accumulate(saved.d_results, saved.product, down_);
}

}  // namespace orchard
