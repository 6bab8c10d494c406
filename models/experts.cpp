#include "models/experts.h"

#include <cmath>

#include "kernels/activation/activation.h"
#include "kernels/gemm/gemm.h"

namespace orchard {
namespace {

// The experts' matrices of one kind, one after the other, so that they form a stack.
struct Matrices {
  std::string name;  // of the layer
  const char* matrix;
  Shape shape;
  std::int64_t experts;
  double std;
  int tensor_dim;
};

// Returns the first that is here and counts them; every rank holds at least one.
const Parameter* declare(ParameterStore& store, const Matrices& m, std::int64_t& here) {
  const Parameter* first = nullptr;
  here = 0;
  for (std::int64_t e = 0; e < m.experts; ++e) {
    const Parameter& p =
        store.declare({.name = fmt::format("{}.experts.{}.{}", m.name, e, m.matrix),
                       .shape = m.shape,
                       .std = m.std,
                       .weight_decay = WeightDecay::yes,
                       .sharding = {.tensor_dim = m.tensor_dim,
                                    .expert = static_cast<int>(e),
                                    .experts = static_cast<int>(m.experts)}});
    if (!p.is_here()) continue;
    ++here;
    if (!first) first = &p;
  }
  return first;
}

}  // namespace

Experts::Experts(ParameterStore& store, const std::string& name, const DecoderConfig& config)
    : store_(store), hidden_(config.hidden) {
  const auto declared = [&](const char* matrix, Shape shape, double std, int tensor_dim) {
    return declare(store,
                   {.name = name,
                    .matrix = matrix,
                    .shape = shape,
                    .experts = config.moe.experts,
                    .std = std,
                    .tensor_dim = tensor_dim},
                   local_);
  };
  gate_ = declared("w_gate", {config.ffn, config.hidden}, 0.02, 0);
  up_ = declared("w_up", {config.ffn, config.hidden}, 0.02, 0);
  down_ = declared("w_down", {config.hidden, config.ffn},
                   0.02 / std::sqrt(2.0 * static_cast<double>(config.layers)), 1);
}

ConstTensor Experts::weights(const Parameter* first) const {
  return store_.stacked(*first, local_, ParameterStore::Field::value);
}

Tensor Experts::gradients(const Parameter* first) const {
  return store_.stacked(*first, local_, ParameterStore::Field::gradient);
}

Tensor Experts::forward(Pass& pass, const Rows& rows, Saved& saved) const {
  const auto grouped = [&](const Rows& a, const Parameter* first, std::int64_t out,
                           const GemmEpilogue& epilogue = {}) {
    const Tensor c = pass.allocate(a.x.dtype(), {a.count(), out});
    run(pass.stream, GroupedGemm{.a = a.x,
                                 .b = weights(first),
                                 .c = c,
                                 .row_offsets = a.row_offsets,
                                 .source = a.source,
                                 .transpose_b = Transpose::yes,
                                 .epilogue = epilogue});
    return c;
  };
  const std::int64_t ffn = gate_->shape()[0];
  saved.rows = rows;
  saved.up = grouped(rows, up_, ffn);
  const Tensor gate = pass.allocate_like(saved.up);
  saved.product =
      grouped(rows, gate_, ffn, {EpilogueKind::silu_gate, /*other=*/saved.up, /*pre=*/gate});
  saved.gate = gate;
  return grouped({saved.product, rows.row_offsets}, down_, hidden_);
}

Tensor Experts::backward_input(Pass& pass, ConstTensor d_results, Saved& saved) const {
  const auto grouped = [&](ConstTensor a, const Parameter* first, Tensor c, Accumulate accumulate) {
    run(pass.stream, GroupedGemm{.a = a,
                                 .b = weights(first),
                                 .c = c,
                                 .row_offsets = saved.rows.row_offsets,
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
                                  .row_count = saved.rows.row_offsets.slice(local_, 1)});
  const Tensor d_rows = pass.allocate(d_results.dtype(), {saved.rows.count(), hidden_});
  grouped(d_gate, gate_, d_rows, Accumulate::overwrite);
  grouped(d_up, up_, d_rows, Accumulate::add);
  saved.d_results = d_results;
  saved.d_gate = d_gate;
  saved.d_up = d_up;
  return d_rows;
}

void Experts::backward_weight(Pass& pass, const Saved& saved) const {
  const auto accumulate = [&](ConstTensor d_y, const Rows& x, const Parameter* first) {
    run(pass.stream, GroupedGemmWeightGradient{.a = d_y,
                                               .b = x.x,
                                               .d_b = gradients(first),
                                               .row_offsets = x.row_offsets,
                                               .source = x.source});
  };
  accumulate(saved.d_gate, saved.rows, gate_);
  accumulate(saved.d_up, saved.rows, up_);
  accumulate(saved.d_results, {saved.product, saved.rows.row_offsets}, down_);
}

}  // namespace orchard
