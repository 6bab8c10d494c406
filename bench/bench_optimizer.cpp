// The optimizers and the gradient norm, on as many parameters as `tiny` has. AdaFactor counts its
// several readings of the gradient, as its file says. See operands.h for what is counted.
#include "bench/operands.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/optimizer/optimizer.h"

namespace orchard::bench {
namespace {

constexpr DType f32 = DType::f32;

void sum_of_squares(benchmark::State& state, Operands& t, DType, Shape s) {
  t.measure(state, SumOfSquares{.x = t.once(f32, s), .result = t.once(f32, {1})});
}

void adamw(benchmark::State& state, Operands& t, DType, Shape s) {
  t.measure(state, AdamW{.weights = t.in_place(f32, s),
                         .gradients = t.once(f32, s),
                         .m = t.in_place(f32, s),
                         .v = t.in_place(f32, s),
                         .copy = t.once(DType::bf16, s),
                         .lr = 1e-6f});
}

void adafactor(benchmark::State& state, Operands& t, DType, Shape s) {
  t.measure(state, AdaFactor{.weights = t.in_place(f32, s),
                             .gradients = t.touched(f32, s, 3),
                             .v_row = t.in_place(f32, {s[0]}),
                             .v_col = t.in_place(f32, {s[1]}),
                             .copy = t.once(DType::bf16, s),
                             .lr = 1e-6f});
}

void adafactor_full(benchmark::State& state, Operands& t, DType, Shape s) {
  t.measure(state, AdaFactor{.weights = t.in_place(f32, s),
                             .gradients = t.touched(f32, s, 2),
                             .v = t.touched(f32, s, 3),
                             .copy = t.once(DType::bf16, s),
                             .lr = 1e-6f});
}

// AdaFactor of a block that is spread over ranks: its three parts, here of the whole block. All have
// the statistics of one step, so that no square root meets a negative number.
struct Parts {
  AdaFactorSums sums;
  AdaFactorMeasure measure;
  AdaFactorApply apply;
};

// Their operands live in `own`, which does not count; a benchmark replaces those that do.
Parts adafactor_parts(Operands& own, Shape s) {
  const Tensor gradients = own.once(f32, s), row_sums = own.once(f32, {s[0]});
  const Tensor col_sums = own.once(f32, {s[1]}), v_row = own.once(f32, {s[0]});
  const Tensor v_col = own.once(f32, {s[1]}), squares = own.once(f32, {1});
  const Parts parts{
      .sums = {.gradients = gradients, .row_sums = row_sums, .col_sums = col_sums},
      .measure = {.gradients = gradients,
                  .row_sums = row_sums,
                  .col_sums = col_sums,
                  .v_row = v_row,
                  .v_col = v_col,
                  .squares = squares,
                  .rows = s[0]},
      .apply = {
          .v_row = v_row, .v_col = v_col, .squares = squares, .count = s.numel(), .lr = 1e-6}};
  const auto stream = cpu_device().make_stream();
  run(*stream, parts.sums);
  run(*stream, parts.measure);
  stream->synchronize();
  return parts;
}

void adafactor_sums(benchmark::State& state, Operands& t, DType, Shape s) {
  t.measure(state, AdaFactorSums{.gradients = t.once(f32, s),
                                 .row_sums = t.once(f32, {s[0]}),
                                 .col_sums = t.once(f32, {s[1]})});
}

void adafactor_measure(benchmark::State& state, Operands& t, DType, Shape s) {
  Operands own;
  AdaFactorMeasure op = adafactor_parts(own, s).measure;
  op.gradients = t.once(f32, s);
  t.measure(state, op);
}

void adafactor_apply(benchmark::State& state, Operands& t, DType, Shape s) {
  Operands own;
  AdaFactorApply op = adafactor_parts(own, s).apply;
  op.weights = t.in_place(f32, s);
  op.gradients = t.once(f32, s);
  op.copy = t.once(DType::bf16, s);
  t.measure(state, op);
}

const bool registered = [] {
  const Shape model = {17614, 1408};  // 24.8M
  add_benchmark("SumOfSquares", sum_of_squares, f32, model);
  add_benchmark("AdamW", adamw, f32, model);
  add_benchmark("AdaFactor", adafactor, f32, model);
  add_benchmark("AdaFactorUnfactored", adafactor_full, f32, model);
  add_benchmark("AdaFactorSums", adafactor_sums, f32, model);
  add_benchmark("AdaFactorMeasure", adafactor_measure, f32, model);
  add_benchmark("AdaFactorApply", adafactor_apply, f32, model);
  return true;
}();

}  // namespace
}  // namespace orchard::bench
