// What a mixture of experts does around its matrix products on a rank that has all of it, at the shapes of
// the sparse presets. Bytes are those of the tensors named, each element once; integers beside rows do
// not count.
#include "bench/gpu/presets.h"
#include "bench/gpu/row_case.h"
#include "kernels/activation/activation.h"
#include "kernels/permute/permute.h"
#include "kernels/router/router.h"

namespace orchard::bench {
namespace {

constexpr DType f32 = DType::f32, bf16 = DType::bf16, i32 = DType::i32;

struct Routers {
  std::int64_t tokens = 0, experts = 0;
  int k = 0;

  std::int64_t max_rows() const { return max_expert_rows(tokens, k, experts); }
  bool operator==(const Routers&) const = default;
};

Tensor words(GpuBench& bench, const Shape& shape) {
  return bench.zeros(i32, shape);
}

RouterForward router(GpuBench& bench, const Routers& r, float capacity_factor) {
  const auto length = static_cast<std::int32_t>(r.tokens / Preset::sequences);
  std::vector<std::int32_t> offsets{0}, real(Preset::sequences, length);
  while (std::ssize(offsets) <= Preset::sequences) offsets.push_back(offsets.back() + length);
  return {.logits = bench.random(f32, {r.tokens, r.experts}),
          .sequence_offsets = bench.integers(offsets),
          .real_tokens = bench.integers(real),
          .k = r.k,
          .capacity_factor = capacity_factor,
          .probabilities = bench.zeros(f32, {r.tokens, r.experts}),
          .log_sum_exp = bench.zeros(f32, {r.tokens}),
          .chosen = words(bench, {r.tokens, r.k}),
          .experts = words(bench, {r.tokens, r.k}),
          .gates = bench.zeros(f32, {r.tokens, r.k}),
          .margins = bench.zeros(f32, {r.tokens}),
          .choice_fractions = bench.zeros(f32, {Preset::sequences, r.experts}),
          .balance_loss = bench.zeros(f32, {Preset::sequences}),
          .z_loss = bench.zeros(f32, {Preset::sequences}),
          .expert_counts = words(bench, {2, r.experts})};
}

// A routing made from random scores, and its plan.
struct Routing {
  RouterForward router;
  PermutePlan plan;
};
Routing routing(GpuBench& bench, const Routers& r) {
  const RouterForward forward = router(bench, r, 0);
  const PermutePlan plan{.experts = forward.experts,
                         .row_offsets = words(bench, {r.experts + 1}),
                         .source = words(bench, {r.max_rows()}),
                         .slot = words(bench, {r.tokens, r.k})};
  run(bench.stream(), forward);
  run(bench.stream(), plan);
  return {forward, plan};
}

void add_router(std::vector<GpuCase>& cases, const Routers& r) {
  const auto logits = static_cast<double>(r.tokens * r.experts);
  const std::string shape = fmt::format("{}x{}", r.tokens, r.experts);
  for (const float factor : {0.0f, 1.25f}) {
    cases.push_back(row_case(fmt::format("router/forward/capacity_{}/{}", factor, shape),
                             8 * logits,
                             [=](GpuBench& bench) { return router(bench, r, factor); }));
  }
  cases.push_back(row_case("router/backward/" + shape, 8 * logits, [=](GpuBench& bench) {
    const RouterForward forward = routing(bench, r).router;
    return RouterBackward{.probabilities = forward.probabilities,
                          .log_sum_exp = forward.log_sum_exp,
                          .chosen = forward.chosen,
                          .experts = forward.experts,
                          .choice_fractions = forward.choice_fractions,
                          .sequence_offsets = forward.sequence_offsets,
                          .real_tokens = forward.real_tokens,
                          .d_gates = bench.random(f32, {r.tokens, r.k}),
                          .k = r.k,
                          .balance_scale = bench.random(f32, {1}),
                          .z_scale = bench.random(f32, {1}),
                          .d_logits = bench.zeros(f32, {r.tokens, r.experts})};
  }));
  cases.push_back(row_case(fmt::format("permute_plan/{}x{}", r.tokens, r.k),
                           4.0 * static_cast<double>(3 * r.tokens * r.k + r.max_rows()),
                           [=](GpuBench& bench) { return routing(bench, r).plan; }));
}

void add_permute(std::vector<GpuCase>& cases, const Routers& r, std::int64_t hidden) {
  const std::string shape = fmt::format("{}x{}x{}", r.tokens, r.k, hidden);
  const double per_token = 2.0 * static_cast<double>(r.tokens * hidden);  // of [tokens, hidden]
  const double rows = r.k * per_token;
  const Shape of_tokens = {r.tokens, hidden}, of_rows = {r.max_rows(), hidden};
  cases.push_back(row_case("dispatch/forward/" + shape, per_token + rows, [=](GpuBench& bench) {
    const PermutePlan plan = routing(bench, r).plan;
    return DispatchForward{.x = bench.random(bf16, of_tokens),
                           .source = plan.source,
                           .slot = plan.slot,
                           .row_offsets = plan.row_offsets,
                           .rows = bench.random(bf16, of_rows)};
  }));
  cases.push_back(
      row_case("dispatch/backward/" + shape, 2 * per_token + rows, [=](GpuBench& bench) {
        return DispatchBackward{.d_rows = bench.random(bf16, of_rows),
                                .slot = routing(bench, r).plan.slot,
                                .d_extra = bench.random(bf16, of_tokens),
                                .d_x = bench.random(bf16, of_tokens)};
      }));
  cases.push_back(row_case("combine/forward/" + shape, per_token + rows, [=](GpuBench& bench) {
    const Routing made = routing(bench, r);
    return CombineForward{.rows = bench.random(bf16, of_rows),
                          .slot = made.plan.slot,
                          .gates = made.router.gates,
                          .y = bench.random(bf16, of_tokens)};
  }));
  cases.push_back(row_case("combine/backward/" + shape, per_token + 2 * rows, [=](GpuBench& bench) {
    const Routing made = routing(bench, r);
    return CombineBackward{.rows = bench.random(bf16, of_rows),
                           .source = made.plan.source,
                           .slot = made.plan.slot,
                           .gates = made.router.gates,
                           .row_offsets = made.plan.row_offsets,
                           .d_y = bench.random(bf16, of_tokens),
                           .d_rows = bench.random(bf16, of_rows),
                           .d_gates = bench.zeros(f32, {r.tokens, r.k})};
  }));
}

// Of the rows that have a choice: the experts' buffers have room for the worst case.
void add_swiglu(std::vector<GpuCase>& cases, const Routers& r, std::int64_t ffn) {
  const Shape shape = {r.max_rows(), ffn};
  cases.push_back(row_case(fmt::format("swiglu/experts_backward/{}x{}", r.tokens * r.k, ffn),
                           10.0 * static_cast<double>(r.tokens * r.k * ffn), [=](GpuBench& bench) {
                             const Tensor offsets = routing(bench, r).plan.row_offsets;
                             return SwiGluBackward{.gate = bench.random(bf16, shape),
                                                   .up = bench.random(bf16, shape),
                                                   .d_y = bench.random(bf16, shape),
                                                   .d_gate = bench.random(bf16, shape),
                                                   .d_up = bench.random(bf16, shape),
                                                   .row_count = offsets.slice(r.experts, 1)};
                           }));
}

}  // namespace

std::vector<GpuCase> moe_cases() {
  std::vector<GpuCase> cases;
  std::vector<Routers> timed;
  for (const Preset& p : presets()) {
    if (!p.is_sparse()) continue;
    const MoeConfig& moe = p.model.decoder.moe;
    const Routers routers{p.tokens(), moe.experts, moe.top_k};
    if (std::find(timed.begin(), timed.end(), routers) == timed.end()) {
      timed.push_back(routers);
      add_router(cases, routers);
    }
    add_permute(cases, routers, p.model.decoder.hidden);
    add_swiglu(cases, routers, p.model.decoder.ffn);
  }
  return cases;
}

}  // namespace orchard::bench
