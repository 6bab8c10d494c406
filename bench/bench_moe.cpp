// What a mixture of experts does around its matrix products (bench_gemm has those), and the moving
// of rows: embedding, gather, scatter. Shapes are [tokens, hidden] with 8 experts, 2 a token. See
// operands.h for what is counted.
#include "bench/operands.h"
#include "kernels/embedding/embedding.h"
#include "kernels/permute/exchange.h"
#include "kernels/permute/permute.h"
#include "kernels/router/router.h"

namespace orchard::bench {
namespace {

constexpr DType f32 = DType::f32, i32 = DType::i32;
constexpr std::int64_t experts = 8, k = 2, sequences = 8;

RouterForward router(Operands& t, std::int64_t tokens) {
  const std::int64_t length = tokens / sequences;
  return {
      .logits = t.once(f32, {tokens, experts}),
      .sequence_offsets = t.integers({sequences + 1}, [=](std::int64_t i) { return i * length; }),
      .real_tokens = t.integers({sequences}, [=](std::int64_t) { return length; }),
      .k = k,
      .probabilities = t.once(f32, {tokens, experts}),
      .log_sum_exp = t.once(f32, {tokens}),
      .chosen = t.once(i32, {tokens, k}),
      .experts = t.once(i32, {tokens, k}),
      .gates = t.once(f32, {tokens, k}),
      .choice_fractions = t.once(f32, {sequences, experts}),
      .balance_loss = t.once(f32, {sequences}),
      .z_loss = t.once(f32, {sequences}),
      .expert_counts = t.once(i32, {2, experts})};
}

// A routing with its plan, made from random scores. `rows` are those in use.
struct Routing {
  Tensor row_offsets, source, slot, gates;
  std::int64_t max_rows = 0, rows = 0;
};

PermutePlan plan(Operands& t, std::int64_t tokens, Tensor chosen) {
  return {.experts = chosen,
          .row_offsets = t.once(i32, {experts + 1}),
          .source = t.once(i32, {max_expert_rows(tokens, k, experts)}),
          .slot = t.once(i32, {tokens, k})};
}

// Its operands live in `own` and count nowhere; those in `t` are copies, which count.
Routing make_routing(Operands& t, std::int64_t tokens) {
  Operands own;
  const auto stream = cpu_device().make_stream();
  const RouterForward forward = router(own, tokens);
  run(*stream, forward);
  const PermutePlan made = plan(own, tokens, forward.experts);
  run(*stream, made);
  stream->synchronize();
  const auto copy = [&](const Tensor& from) {
    const Tensor to = t.once(from.dtype(), from.shape());
    stream->copy(to, from);
    return to;
  };
  return {.row_offsets = copy(made.row_offsets),
          .source = copy(made.source),
          .slot = copy(made.slot),
          .gates = copy(forward.gates),
          .max_rows = made.source.dim(0),
          .rows = made.row_offsets.data<std::int32_t>()[experts]};
}

void router_forward(benchmark::State& state, Operands& t, DType, Shape s) {
  t.measure(state, router(t, s[0]));
}

void router_backward(benchmark::State& state, Operands& t, DType, Shape s) {
  Operands own;
  const RouterForward forward = router(own, s[0]);
  run(*cpu_device().make_stream(), forward);
  t.measure(state, RouterBackward{.probabilities = t.once(f32, {s[0], experts}),
                                  .log_sum_exp = t.once(f32, {s[0]}),
                                  .chosen = forward.chosen,
                                  .experts = forward.experts,
                                  .choice_fractions = forward.choice_fractions,
                                  .sequence_offsets = forward.sequence_offsets,
                                  .real_tokens = forward.real_tokens,
                                  .d_gates = t.once(f32, {s[0], k}),
                                  .k = k,
                                  .balance_scale = t.once(f32, {1}),
                                  .z_scale = t.once(f32, {1}),
                                  .d_logits = t.once(f32, {s[0], experts})});
}

void permute_plan(benchmark::State& state, Operands& t, DType, Shape s) {
  const Tensor chosen = t.integers({s[0], k}, [](std::int64_t i) {
    const std::int64_t first = i / k * 5 % 7;
    return i % k ? first + 1 : first;
  });
  t.measure(state, plan(t, s[0], chosen));
}

const std::vector<std::pair<const char*, Body>> of_rows = {
    {"DispatchForward",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       const Routing r = make_routing(t, s[0]);
       t.measure(state, DispatchForward{.x = t.once(e, s),
                                        .source = r.source,
                                        .row_offsets = r.row_offsets,
                                        .rows = t.leading_rows(e, {r.max_rows, s[1]}, r.rows)});
     }},
    {"DispatchBackward",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       const Routing r = make_routing(t, s[0]);
       t.measure(state, DispatchBackward{.d_rows = t.leading_rows(e, {r.max_rows, s[1]}, r.rows),
                                         .slot = r.slot,
                                         .d_extra = t.once(e, s),
                                         .d_x = t.once(e, s)});
     }},
    {"CombineForward",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       const Routing r = make_routing(t, s[0]);
       t.measure(state, CombineForward{.rows = t.leading_rows(e, {r.max_rows, s[1]}, r.rows),
                                       .slot = r.slot,
                                       .gates = r.gates,
                                       .y = t.once(e, s)});
     }},
    {"CombineBackward",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       const Routing r = make_routing(t, s[0]);
       t.measure(state, CombineBackward{.rows = t.leading_rows(e, {r.max_rows, s[1]}, r.rows),
                                        .source = r.source,
                                        .slot = r.slot,
                                        .gates = r.gates,
                                        .row_offsets = r.row_offsets,
                                        .d_y = t.once(e, s),
                                        .d_rows = t.leading_rows(e, {r.max_rows, s[1]}, r.rows),
                                        .d_gates = t.once(f32, {s[0], k})});
     }},
    // Every row of the table has one token, so that each is read, or written, once.
    {"EmbeddingForward",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       const auto turned = [n = s[0]](std::int64_t i) { return i * 7919 % n; };
       t.measure(state, EmbeddingForward{.table = t.once(e, s),
                                         .sources = t.integers({s[0]}, turned),
                                         .y = t.once(e, s)});
     }},
    {"EmbeddingBackward",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       const auto turned = [n = s[0]](std::int64_t i) { return i * 7919 % n; };
       t.measure(state, EmbeddingBackward{.d_y = t.once(e, s),
                                          .sources = t.integers({s[0]}, turned),
                                          .d_table = t.in_place(f32, s)});
     }},
    {"GatherRows",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       const auto itself = [](std::int64_t i) { return i; };
       t.measure(
           state,
           GatherRows{.x = t.once(e, s), .indices = t.integers({s[0]}, itself), .y = t.once(e, s)});
     }},
    {"ScatterRows",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       const auto itself = [](std::int64_t i) { return i; };
       t.measure(state,
                 ScatterRows{
                     .x = t.once(e, s), .indices = t.integers({s[0]}, itself), .y = t.once(e, s)});
     }},
    {"PackRows",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       const auto turned = [n = s[0]](std::int64_t i) { return i * 7919 % n; };
       t.measure(state,
                 PackRows{.x = t.once(e, s),
                          .targets = t.once(i32, {s[0], k}),
                          .source = t.integers({s[0]}, turned),
                          .packed = t.once(DType::u8, {s[0], packed_row_bytes(s[1], e, k)})});
     }},
    {"UnpackRows",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       t.measure(state,
                 UnpackRows{.packed = t.once(DType::u8, {s[0], packed_row_bytes(s[1], e, k)}),
                            .x = t.once(e, s),
                            .targets = t.once(i32, {s[0], k})});
     }},
    // Runs of 64 rows, in reverse.
    {"CopyRuns",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       const std::int64_t length = 64, runs = s[0] / length;
       const auto entry = [=](std::int64_t i) {
         const std::int64_t run = i / 3;
         return i % 3 == 0 ? run * length : i % 3 == 1 ? (runs - 1 - run) * length : length;
       };
       t.measure(
           state,
           CopyRuns{.x = t.once(e, s), .runs = t.integers({runs, 3}, entry), .y = t.once(e, s)});
     }},
};

void map_choices(benchmark::State& state, Operands& t, DType, Shape s) {
  t.measure(state,
            MapChoices{.experts = t.integers(s, [](std::int64_t i) { return i % experts; }),
                       .table = t.integers({experts, 1}, [](std::int64_t i) { return i / 2; }),
                       .targets = t.once(i32, s),
                       .repeats = Repeats::drop});
}

const bool registered = [] {
  const std::int64_t tokens = 4096;
  add_benchmark("RouterForward", router_forward, f32, {tokens, experts});
  add_benchmark("RouterBackward", router_backward, f32, {tokens, experts});
  add_benchmark("PermutePlan", permute_plan, i32, {tokens, k});
  add_benchmark("MapChoices", map_choices, i32, {tokens, k});
  for (const auto& [name, body] : of_rows) {
    for (const std::int64_t hidden : {512, 2048})
      add_benchmark_of_both(name, body, {tokens, hidden});
  }
  return true;
}();

}  // namespace
}  // namespace orchard::bench
