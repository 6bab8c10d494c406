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

const bool registered = [] {
  const Shape model = {17614, 1408};  // 24.8M
  add_benchmark("SumOfSquares", sum_of_squares, f32, model);
  add_benchmark("AdamW", adamw, f32, model);
  add_benchmark("AdaFactor", adafactor, f32, model);
  add_benchmark("AdaFactorUnfactored", adafactor_full, f32, model);
  return true;
}();

}  // namespace
}  // namespace orchard::bench
