// What a mixture of experts does around its matrix products, and the embedding, at the shapes of the
// presets: two sequences of 4096 tokens, 64 experts, two a token. Bytes are those of the tensors
// named, each element once; integers beside rows do not count.
#include <set>

#include "bench/gpu/row_case.h"
#include "kernels/embedding/embedding.h"
#include "kernels/permute/permute.h"
#include "kernels/router/router.h"

namespace orchard::bench {
namespace {

constexpr std::int64_t tokens = 8192, sequences = 2, experts = 64, k = 2, vocab = 49152;
constexpr std::int64_t max_rows = max_expert_rows(tokens, k, experts);
constexpr DType f32 = DType::f32, bf16 = DType::bf16, i32 = DType::i32;

Tensor words(GpuBench& bench, const Shape& shape) {
  return bench.zeros(i32, shape);
}

RouterForward router(GpuBench& bench, float capacity_factor) {
  constexpr std::int32_t length = tokens / sequences;
  return {.logits = bench.random(f32, {tokens, experts}),
          .sequence_offsets = bench.integers({0, length, 2 * length}),
          .real_tokens = bench.integers({length, length}),
          .k = k,
          .capacity_factor = capacity_factor,
          .probabilities = bench.zeros(f32, {tokens, experts}),
          .log_sum_exp = bench.zeros(f32, {tokens}),
          .chosen = words(bench, {tokens, k}),
          .experts = words(bench, {tokens, k}),
          .gates = bench.zeros(f32, {tokens, k}),
          .margins = bench.zeros(f32, {tokens}),
          .choice_fractions = bench.zeros(f32, {sequences, experts}),
          .balance_loss = bench.zeros(f32, {sequences}),
          .z_loss = bench.zeros(f32, {sequences}),
          .expert_counts = words(bench, {2, experts})};
}

// A routing made from random scores, and its plan.
struct Routing {
  RouterForward router;
  PermutePlan plan;
};
Routing routing(GpuBench& bench) {
  const RouterForward forward = router(bench, 0);
  const PermutePlan plan{.experts = forward.experts,
                         .row_offsets = words(bench, {experts + 1}),
                         .source = words(bench, {max_rows}),
                         .slot = words(bench, {tokens, k})};
  run(bench.stream(), forward);
  run(bench.stream(), plan);
  return {forward, plan};
}

void add_router(std::vector<GpuCase>& cases) {
  constexpr double logits = tokens * experts;
  for (const float factor : {0.0f, 1.25f}) {
    cases.push_back(
        row_case(fmt::format("router/forward/capacity_{}/{}x{}", factor, tokens, experts),
                 8 * logits, [=](GpuBench& bench) { return router(bench, factor); }));
  }
  cases.push_back(row_case(fmt::format("router/backward/{}x{}", tokens, experts), 8 * logits,
                           [=](GpuBench& bench) {
                             const RouterForward forward = routing(bench).router;
                             return RouterBackward{.probabilities = forward.probabilities,
                                                   .log_sum_exp = forward.log_sum_exp,
                                                   .chosen = forward.chosen,
                                                   .experts = forward.experts,
                                                   .choice_fractions = forward.choice_fractions,
                                                   .sequence_offsets = forward.sequence_offsets,
                                                   .real_tokens = forward.real_tokens,
                                                   .d_gates = bench.random(f32, {tokens, k}),
                                                   .k = k,
                                                   .balance_scale = bench.random(f32, {1}),
                                                   .z_scale = bench.random(f32, {1}),
                                                   .d_logits = bench.zeros(f32, {tokens, experts})};
                           }));
  cases.push_back(row_case(fmt::format("permute_plan/{}x{}", tokens, k),
                           4.0 * (3 * tokens * k + max_rows),
                           [](GpuBench& bench) { return routing(bench).plan; }));
}

void add_permute(std::vector<GpuCase>& cases, std::int64_t hidden) {
  const std::string shape = fmt::format("{}x{}x{}", tokens, k, hidden);
  const double per_token = 2.0 * static_cast<double>(tokens * hidden);  // bytes of [tokens, hidden]
  const Shape of_tokens = {tokens, hidden}, of_rows = {max_rows, hidden};
  cases.push_back(row_case("dispatch/forward/" + shape, (1 + k) * per_token, [=](GpuBench& bench) {
    const PermutePlan plan = routing(bench).plan;
    return DispatchForward{.x = bench.random(bf16, of_tokens),
                           .source = plan.source,
                           .slot = plan.slot,
                           .row_offsets = plan.row_offsets,
                           .rows = bench.random(bf16, of_rows)};
  }));
  cases.push_back(row_case("dispatch/backward/" + shape, (2 + k) * per_token, [=](GpuBench& bench) {
    return DispatchBackward{.d_rows = bench.random(bf16, of_rows),
                            .slot = routing(bench).plan.slot,
                            .d_extra = bench.random(bf16, of_tokens),
                            .d_x = bench.random(bf16, of_tokens)};
  }));
  cases.push_back(row_case("combine/forward/" + shape, (1 + k) * per_token, [=](GpuBench& bench) {
    const Routing r = routing(bench);
    return CombineForward{.rows = bench.random(bf16, of_rows),
                          .slot = r.plan.slot,
                          .gates = r.router.gates,
                          .y = bench.random(bf16, of_tokens)};
  }));
  cases.push_back(
      row_case("combine/backward/" + shape, (1 + 2 * k) * per_token, [=](GpuBench& bench) {
        const Routing r = routing(bench);
        return CombineBackward{.rows = bench.random(bf16, of_rows),
                               .source = r.plan.source,
                               .slot = r.plan.slot,
                               .gates = r.router.gates,
                               .row_offsets = r.plan.row_offsets,
                               .d_y = bench.random(bf16, of_tokens),
                               .d_rows = bench.random(bf16, of_rows),
                               .d_gates = bench.zeros(f32, {tokens, k})};
      }));
}

// One token in eight is the same, as words of a language repeat; the others scatter over the
// vocabulary.
std::vector<std::int32_t> token_ids() {
  std::vector<std::int32_t> ids(tokens);
  for (std::size_t t = 0; t < ids.size(); ++t) {
    ids[t] = t % 8 == 0 ? 13 : static_cast<std::int32_t>(t * 2654435761u % vocab);
  }
  return ids;
}

void add_embedding(std::vector<GpuCase>& cases, std::int64_t hidden) {
  const std::vector<std::int32_t> ids = token_ids();
  const std::set<std::int32_t> distinct(ids.begin(), ids.end());
  const std::string shape = fmt::format("{}x{}", tokens, hidden);
  const auto cols = static_cast<double>(hidden);
  const double of_tokens = 2.0 * static_cast<double>(tokens) * cols;
  const double of_ids = static_cast<double>(distinct.size()) * cols;
  cases.push_back(
      row_case("embedding/forward/" + shape, 2 * of_ids + of_tokens, [=](GpuBench& bench) {
        return EmbeddingForward{.table = bench.random(bf16, {vocab, hidden}),
                                .sources = bench.integers(ids),
                                .y = bench.random(bf16, {tokens, hidden})};
      }));
  cases.push_back(
      row_case("embedding/backward/" + shape, 8 * of_ids + of_tokens, [=](GpuBench& bench) {
        return EmbeddingBackward{.d_y = bench.random(bf16, {tokens, hidden}),
                                 .sources = bench.integers(ids),
                                 .d_table = bench.zeros(f32, {vocab, hidden})};
      }));
  std::vector<std::int32_t> every_other(tokens / 2);
  for (std::size_t i = 0; i < every_other.size(); ++i) {
    every_other[i] = static_cast<std::int32_t>(2 * i);
  }
  cases.push_back(row_case("gather_rows/" + shape, of_tokens, [=](GpuBench& bench) {
    return GatherRows{.x = bench.random(bf16, {tokens, hidden}),
                      .indices = bench.integers(every_other),
                      .y = bench.random(bf16, {tokens / 2, hidden})};
  }));
  cases.push_back(row_case("scatter_rows/" + shape, 1.5 * of_tokens, [=](GpuBench& bench) {
    return ScatterRows{.x = bench.random(bf16, {tokens / 2, hidden}),
                       .indices = bench.integers(every_other),
                       .y = bench.random(bf16, {tokens, hidden})};
  }));
}

}  // namespace

std::vector<GpuCase> moe_cases() {
  std::vector<GpuCase> cases;
  add_router(cases);
  for (const std::int64_t hidden : {2048, 3072}) {
    add_permute(cases, hidden);
    add_embedding(cases, hidden);
  }
  return cases;
}

}  // namespace orchard::bench
