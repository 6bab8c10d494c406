// Norms, activations, the loss, elementwise operations and the sum over ranks: all that a text block
// does beside its matrix products. See operands.h for what is counted.
#include "bench/operands.h"
#include "kernels/activation/activation.h"
#include "kernels/collective/rank_sum.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/loss/loss.h"
#include "kernels/norm/norm.h"

namespace orchard::bench {
namespace {

constexpr DType f32 = DType::f32;

const std::vector<std::pair<const char*, Body>> pointwise = {
    {"RmsNormForward",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       t.measure(state, RmsNormForward{.x = t.once(e, s),
                                       .weight = t.once(e, {s[1]}),
                                       .y = t.once(e, s),
                                       .inverse_rms = t.once(f32, {s[0]})});
     }},
    {"RmsNormForwardResidual",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       t.measure(state, RmsNormForward{.x = t.once(e, s),
                                       .delta = t.once(e, s),
                                       .weight = t.once(e, {s[1]}),
                                       .sum = t.once(e, s),
                                       .y = t.once(e, s),
                                       .inverse_rms = t.once(f32, {s[0]})});
     }},
    {"RmsNormBackward",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       t.measure(state, RmsNormBackward{.x = t.once(e, s),
                                        .weight = t.once(e, {s[1]}),
                                        .inverse_rms = t.once(f32, {s[0]}),
                                        .d_y = t.once(e, s),
                                        .d_sum = t.once(e, s),
                                        .d_x = t.once(e, s),
                                        .d_weight = t.in_place(f32, {s[1]})});
     }},
    {"LayerNormForward",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       t.measure(state, LayerNormForward{.x = t.once(e, s),
                                         .weight = t.once(e, {s[1]}),
                                         .bias = t.once(e, {s[1]}),
                                         .y = t.once(e, s),
                                         .mean = t.once(f32, {s[0]}),
                                         .inverse_std = t.once(f32, {s[0]})});
     }},
    {"LayerNormBackward",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       t.measure(state, LayerNormBackward{.x = t.once(e, s),
                                          .weight = t.once(e, {s[1]}),
                                          .mean = t.once(f32, {s[0]}),
                                          .inverse_std = t.once(f32, {s[0]}),
                                          .d_y = t.once(e, s),
                                          .d_x = t.once(e, s),
                                          .d_weight = t.in_place(f32, {s[1]}),
                                          .d_bias = t.in_place(f32, {s[1]})});
     }},
    {"QkNormRopeForward",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       const Shape heads = {s[0], s[1] / 64, 64};
       t.measure(state, QkNormRopeForward{.x = t.once(e, heads),
                                          .weight = t.once(e, {64}),
                                          .rotation = t.once(f32, {256, 64}),
                                          .positions = t.once(DType::i32, {s[0]}),
                                          .y = t.once(e, heads),
                                          .inverse_rms = t.once(f32, {s[0], s[1] / 64})});
     }},
    {"QkNormRopeBackward",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       const Shape heads = {s[0], s[1] / 64, 64};
       t.measure(state, QkNormRopeBackward{.x = t.once(e, heads),
                                           .weight = t.once(e, {64}),
                                           .rotation = t.once(f32, {256, 64}),
                                           .positions = t.once(DType::i32, {s[0]}),
                                           .inverse_rms = t.once(f32, {s[0], s[1] / 64}),
                                           .d_y = t.once(e, heads),
                                           .d_x = t.once(e, heads),
                                           .d_weight = t.in_place(f32, {64})});
     }},
    {"SiluForward",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       t.measure(state,
                 ActivationForward{.kind = Activation::silu, .x = t.once(e, s), .y = t.once(e, s)});
     }},
    {"SiluBackward",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       t.measure(state, ActivationBackward{.kind = Activation::silu,
                                           .x = t.once(e, s),
                                           .d_y = t.once(e, s),
                                           .d_x = t.once(e, s)});
     }},
    {"QuickGeluForward",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       t.measure(state, ActivationForward{
                            .kind = Activation::quick_gelu, .x = t.once(e, s), .y = t.once(e, s)});
     }},
    {"QuickGeluBackward",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       t.measure(state, ActivationBackward{.kind = Activation::quick_gelu,
                                           .x = t.once(e, s),
                                           .d_y = t.once(e, s),
                                           .d_x = t.once(e, s)});
     }},
    {"SwiGluForward",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       t.measure(state, SwiGluForward{.gate = t.once(e, s), .up = t.once(e, s), .y = t.once(e, s)});
     }},
    {"SwiGluBackward",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       t.measure(state, SwiGluBackward{.gate = t.once(e, s),
                                       .up = t.once(e, s),
                                       .d_y = t.once(e, s),
                                       .d_gate = t.once(e, s),
                                       .d_up = t.once(e, s),
                                       .y = t.once(e, s)});
     }},
    {"Add",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       t.measure(state, Add{.a = t.once(e, s), .b = t.once(e, s), .y = t.once(e, s)});
     }},
    {"AddRow",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       t.measure(state, Add{.a = t.once(e, s), .b = t.once(e, {s[1]}), .y = t.once(e, s)});
     }},
    {"ConvertToOther",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       t.measure(state, Convert{.x = t.once(e, s), .y = t.once(e == f32 ? DType::bf16 : f32, s)});
     }},
    {"Scale", [](benchmark::State& state, Operands& t, DType e,
                 Shape s) { t.measure(state, Scale{.x = t.in_place(e, s), .factor = -1}); }},
    {"ColumnSum",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       t.measure(state, ColumnSum{.x = t.once(e, s), .y = t.in_place(f32, {s[1]})});
     }},
};

void cross_entropy(benchmark::State& state, Operands& t, DType e, Shape s) {
  t.measure(state, CrossEntropy{.logits = t.once(f32, s),
                                .targets = t.once(DType::i32, {s[0]}),
                                .losses = t.once(f32, {s[0]}),
                                .d_logits = t.once(e, s)});
}

// The two halves of a cross-entropy over shards, of one that has the whole vocabulary.
void softmax_of_shard(benchmark::State& state, Operands& t, DType, Shape s) {
  t.measure(state, SoftmaxOfShard{.logits = t.once(f32, s),
                                  .targets = t.once(DType::i32, {s[0]}),
                                  .statistics = t.once(f32, {s[0], softmax_statistics}),
                                  .exponentials = t.once(f32, s)});
}

void cross_entropy_of_shards(benchmark::State& state, Operands& t, DType e, Shape s) {
  Operands own;
  const SoftmaxOfShard softmax{.logits = own.once(f32, s),
                               .targets = t.once(DType::i32, {s[0]}),
                               .statistics = t.once(f32, {s[0], softmax_statistics}),
                               .exponentials = t.once(f32, s)};
  const auto stream = cpu_device().make_stream();
  run(*stream, softmax);
  stream->synchronize();
  t.measure(state, CrossEntropyOfShards{
                       .statistics = softmax.statistics.reshape({1, s[0], softmax_statistics}),
                       .targets = softmax.targets,
                       .losses = t.once(f32, {s[0]}),
                       .exponentials = softmax.exponentials,
                       .d_logits = t.once(e, s)});
}

// The part of one of `ranks` ranks is its own, and its row of `parts` is not read.
void rank_sum(benchmark::State& state, Operands& t, DType e, Shape s) {
  t.measure(state, RankSum{.parts = t.leading_rows(e, s, s[0] - 1),
                           .own = t.once(e, {s[1]}),
                           .own_rank = static_cast<int>(s[0]) - 1,
                           .result = t.once(e, {s[1]})});
}

const bool registered = [] {
  for (const auto& [name, body] : pointwise) {
    for (const std::int64_t cols : {512, 1408}) add_benchmark_of_both(name, body, {4096, cols});
  }
  for (const std::int64_t vocab : {8192, 49152}) {
    add_benchmark_of_both("CrossEntropy", cross_entropy, {256, vocab});
    add_benchmark("SoftmaxOfShard", softmax_of_shard, f32, {256, vocab});
    add_benchmark_of_both("CrossEntropyOfShards", cross_entropy_of_shards, {256, vocab});
  }
  for (const Shape& parts : {Shape{2, 4 << 20}, Shape{8, 1 << 20}})
    add_benchmark_of_both("RankSum", rank_sum, parts);
  return true;
}();

}  // namespace
}  // namespace orchard::bench
