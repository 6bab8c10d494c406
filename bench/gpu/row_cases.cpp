// Operations that memory bounds, at the shapes of the presets (launch/recipes): 8192 tokens of the
// decoders, 16 tiles of the vision tower. Beside each a plain copy that moves as many bytes.
#include <numeric>

#include "bench/gpu/row_case.h"
#include "kernels/activation/activation.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/loss/loss.h"
#include "kernels/norm/norm.h"
#include "kernels/optimizer/gradient_norm.h"
#include "kernels/optimizer/optimizer.h"

namespace orchard::bench {
namespace {

constexpr std::int64_t tokens = 8192;
constexpr std::int64_t patches = 16 * 730;  // with a class token each, of 378 x 378 pixels

// "norm/rms_forward/8192x2048"
std::string named(const char* operation, std::int64_t rows, std::int64_t cols) {
  return fmt::format("{}/{}x{}", operation, rows, cols);
}

double elements(std::int64_t rows, std::int64_t cols) {
  return static_cast<double>(rows) * static_cast<double>(cols);
}

void add_rms_norm(std::vector<GpuCase>& cases, std::int64_t cols) {
  const Shape shape = {tokens, cols};
  const double n = elements(tokens, cols);
  cases.push_back(row_case(named("rms_norm/forward", tokens, cols), 8 * n, [=](GpuBench& bench) {
    return RmsNormForward{.x = bench.random(DType::bf16, shape),
                          .delta = bench.random(DType::bf16, shape),
                          .weight = bench.random(DType::bf16, {cols}),
                          .sum = bench.random(DType::bf16, shape),
                          .y = bench.random(DType::bf16, shape),
                          .inverse_rms = bench.random(DType::f32, {tokens})};
  }));
  cases.push_back(row_case(named("rms_norm/backward", tokens, cols), 8 * n, [=](GpuBench& bench) {
    return RmsNormBackward{.x = bench.random(DType::bf16, shape),
                           .weight = bench.random(DType::bf16, {cols}),
                           .inverse_rms = bench.random(DType::f32, {tokens}),
                           .d_y = bench.random(DType::bf16, shape),
                           .d_sum = bench.random(DType::bf16, shape),
                           .d_x = bench.random(DType::bf16, shape),
                           .d_weight = bench.random(DType::f32, {cols})};
  }));
}

void add_layer_norm(std::vector<GpuCase>& cases, std::int64_t cols) {
  const Shape shape = {patches, cols};
  const double n = elements(patches, cols);
  cases.push_back(row_case(named("layer_norm/forward", patches, cols), 8 * n, [=](GpuBench& bench) {
    return LayerNormForward{.x = bench.random(DType::bf16, shape),
                            .delta = bench.random(DType::bf16, shape),
                            .weight = bench.random(DType::bf16, {cols}),
                            .bias = bench.random(DType::bf16, {cols}),
                            .sum = bench.random(DType::bf16, shape),
                            .y = bench.random(DType::bf16, shape),
                            .mean = bench.random(DType::f32, {patches}),
                            .inverse_std = bench.random(DType::f32, {patches})};
  }));
  cases.push_back(
      row_case(named("layer_norm/backward", patches, cols), 8 * n, [=](GpuBench& bench) {
        return LayerNormBackward{.x = bench.random(DType::bf16, shape),
                                 .weight = bench.random(DType::bf16, {cols}),
                                 .mean = bench.random(DType::f32, {patches}),
                                 .inverse_std = bench.random(DType::f32, {patches}),
                                 .d_y = bench.random(DType::bf16, shape),
                                 .d_sum = bench.random(DType::bf16, shape),
                                 .d_x = bench.random(DType::bf16, shape),
                                 .d_weight = bench.random(DType::f32, {cols}),
                                 .d_bias = bench.random(DType::f32, {cols})};
      }));
}

void add_qk_norm_rope(std::vector<GpuCase>& cases, std::int64_t heads) {
  constexpr std::int64_t head_dim = 128, positions = 4096;
  const Shape shape = {tokens, heads, head_dim};
  const double n = elements(tokens, heads * head_dim);
  const std::string name = fmt::format("{}x{}x{}", tokens, heads, head_dim);
  const auto where = [](GpuBench& bench) {
    std::vector<std::int32_t> values(tokens);
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i] = static_cast<std::int32_t>(i % positions);
    }
    return bench.integers(values);
  };
  cases.push_back(row_case("qk_norm_rope/forward/" + name, 4 * n, [=](GpuBench& bench) {
    return QkNormRopeForward{.x = bench.random(DType::bf16, shape),
                             .weight = bench.random(DType::bf16, {head_dim}),
                             .rotation = bench.random(DType::f32, {positions, head_dim}),
                             .positions = where(bench),
                             .y = bench.random(DType::bf16, shape),
                             .inverse_rms = bench.random(DType::f32, {tokens, heads})};
  }));
  cases.push_back(row_case("qk_norm_rope/backward/" + name, 6 * n, [=](GpuBench& bench) {
    return QkNormRopeBackward{.x = bench.random(DType::bf16, shape),
                              .weight = bench.random(DType::bf16, {head_dim}),
                              .rotation = bench.random(DType::f32, {positions, head_dim}),
                              .positions = where(bench),
                              .inverse_rms = bench.random(DType::f32, {tokens, heads}),
                              .d_y = bench.random(DType::bf16, shape),
                              .d_x = bench.random(DType::bf16, shape),
                              .d_weight = bench.random(DType::f32, {head_dim})};
  }));
}

void add_swiglu(std::vector<GpuCase>& cases, std::int64_t cols) {
  const Shape shape = {tokens, cols};
  const double n = elements(tokens, cols);
  cases.push_back(row_case(named("swiglu/forward", tokens, cols), 6 * n, [=](GpuBench& bench) {
    return SwiGluForward{.gate = bench.random(DType::bf16, shape),
                         .up = bench.random(DType::bf16, shape),
                         .y = bench.random(DType::bf16, shape)};
  }));
  cases.push_back(row_case(named("swiglu/backward", tokens, cols), 12 * n, [=](GpuBench& bench) {
    return SwiGluBackward{.gate = bench.random(DType::bf16, shape),
                          .up = bench.random(DType::bf16, shape),
                          .d_y = bench.random(DType::bf16, shape),
                          .d_gate = bench.random(DType::bf16, shape),
                          .d_up = bench.random(DType::bf16, shape),
                          .y = bench.random(DType::bf16, shape)};
  }));
}

void add_vision(std::vector<GpuCase>& cases) {
  constexpr std::int64_t cols = 5120;
  const Shape shape = {patches, cols};
  const double n = elements(patches, cols);
  cases.push_back(row_case(named("quick_gelu/forward", patches, cols), 4 * n, [=](GpuBench& bench) {
    return ActivationForward{.kind = Activation::quick_gelu,
                             .x = bench.random(DType::bf16, shape),
                             .y = bench.random(DType::bf16, shape)};
  }));
  cases.push_back(
      row_case(named("quick_gelu/backward", patches, cols), 6 * n, [=](GpuBench& bench) {
        return ActivationBackward{.kind = Activation::quick_gelu,
                                  .x = bench.random(DType::bf16, shape),
                                  .d_y = bench.random(DType::bf16, shape),
                                  .d_x = bench.random(DType::bf16, shape)};
      }));
  cases.push_back(row_case(named("column_sum", patches, cols), 2 * n, [=](GpuBench& bench) {
    return ColumnSum{.x = bench.random(DType::bf16, shape), .y = bench.random(DType::f32, {cols})};
  }));
  const Shape images = {16, 729, 1024};
  const double pixels = elements(16 * 729, 1024);
  cases.push_back(row_case("excite/forward/16x729x1024", 4 * pixels, [=](GpuBench& bench) {
    return ExciteForward{.x = bench.random(DType::bf16, images),
                         .scale = bench.random(DType::bf16, {16, 1024}),
                         .y = bench.random(DType::bf16, images)};
  }));
  cases.push_back(row_case("excite/backward/16x729x1024", 6 * pixels, [=](GpuBench& bench) {
    return ExciteBackward{.x = bench.random(DType::bf16, images),
                          .scale = bench.random(DType::bf16, {16, 1024}),
                          .d_y = bench.random(DType::bf16, images),
                          .d_x = bench.random(DType::bf16, images),
                          .d_scale = bench.random(DType::bf16, {16, 1024})};
  }));
}

void add_elementwise(std::vector<GpuCase>& cases) {
  const Shape shape = {tokens, 4096};
  const double n = elements(tokens, 4096);
  cases.push_back(row_case(named("add", tokens, 4096), 6 * n, [=](GpuBench& bench) {
    return Add{.a = bench.random(DType::bf16, shape),
               .b = bench.random(DType::bf16, shape),
               .y = bench.random(DType::bf16, shape)};
  }));
  cases.push_back(row_case(named("convert_to_bf16", tokens, 4096), 6 * n, [=](GpuBench& bench) {
    return Convert{.x = bench.random(DType::f32, shape), .y = bench.random(DType::bf16, shape)};
  }));
  cases.push_back(row_case(named("scale", tokens, 4096), 4 * n, [=](GpuBench& bench) {
    return Scale{.x = bench.random(DType::bf16, shape), .factor = -1};
  }));
}

void add_cross_entropy(std::vector<GpuCase>& cases, std::int64_t vocab, DType gradient) {
  constexpr std::int64_t rows = 2048;
  const double n = elements(rows, vocab);
  const bool in_place = gradient == DType::f32;
  cases.push_back(row_case(fmt::format("cross_entropy/{}/{}x{}", name_of(gradient), rows, vocab),
                           (in_place ? 8 : 6) * n, [=](GpuBench& bench) {
                             std::vector<std::int32_t> targets(rows);
                             std::iota(targets.begin(), targets.end(), 0);
                             const Tensor logits = bench.random(DType::f32, {rows, vocab});
                             return CrossEntropy{
                                 .logits = logits,
                                 .targets = bench.integers(targets),
                                 .scale = bench.random(DType::f32, {1}),
                                 .losses = bench.random(DType::f32, {rows}),
                                 .d_logits =
                                     in_place ? logits : bench.random(DType::bf16, {rows, vocab})};
                           }));
}

void add_sum_in_order(std::vector<GpuCase>& cases) {
  // What it takes one thread to add the squares of the buckets of a large model.
  constexpr std::int64_t buckets = 512;
  cases.push_back(row_case(named("sum_in_order", 1, buckets), 4.0 * buckets, [=](GpuBench& bench) {
    return SumInOrder{.terms = bench.random(DType::f32, {buckets}),
                      .sum = bench.zeros(DType::i64, {1})};
  }));
}

void add_optimizers(std::vector<GpuCase>& cases, std::int64_t rows, std::int64_t cols) {
  const Shape shape = {rows, cols};
  const double n = elements(rows, cols);
  cases.push_back(row_case(named("sum_of_squares", rows, cols), 4 * n, [=](GpuBench& bench) {
    return SumOfSquares{.x = bench.random(DType::f32, shape),
                        .result = bench.random(DType::f32, {1})};
  }));
  // Small gradients and rates: the weights must stay finite over the runs.
  cases.push_back(row_case(named("adamw", rows, cols), 30 * n, [=](GpuBench& bench) {
    const Tensor moments = bench.zeros(DType::f32, {2 * rows, cols});
    return AdamW{.weights = bench.random(DType::f32, shape),
                 .gradients = bench.random(DType::f32, shape, 1e-3f),
                 .m = moments.slice(0, rows),
                 .v = moments.slice(rows, rows),
                 .copy = bench.random(DType::bf16, shape),
                 .lr = 1e-6f};
  }));
  cases.push_back(row_case(named("adafactor/factored", rows, cols), 22 * n, [=](GpuBench& bench) {
    return AdaFactor{.weights = bench.random(DType::f32, shape),
                     .gradients = bench.random(DType::f32, shape, 1e-3f),
                     .v_row = bench.zeros(DType::f32, {rows}),
                     .v_col = bench.zeros(DType::f32, {cols}),
                     .copy = bench.random(DType::bf16, shape),
                     .lr = 1e-6f};
  }));
  cases.push_back(row_case(named("adafactor/full", rows, cols), 30 * n, [=](GpuBench& bench) {
    return AdaFactor{.weights = bench.random(DType::f32, shape),
                     .gradients = bench.random(DType::f32, shape, 1e-3f),
                     .v = bench.zeros(DType::f32, shape),
                     .copy = bench.random(DType::bf16, shape),
                     .lr = 1e-6f};
  }));
}

}  // namespace

std::vector<GpuCase> row_cases() {
  std::vector<GpuCase> cases;
  add_elementwise(cases);
  for (const std::int64_t hidden : {2048, 3072, 4096, 7168}) add_rms_norm(cases, hidden);
  for (const std::int64_t width : {1024, 1280}) add_layer_norm(cases, width);
  for (const std::int64_t heads : {8, 16, 56}) add_qk_norm_rope(cases, heads);
  for (const std::int64_t ffn : {5632, 8064}) add_swiglu(cases, ffn);
  add_vision(cases);
  for (const std::int64_t vocab : {24064, 49152, 102400}) {
    add_cross_entropy(cases, vocab, DType::f32);
  }
  add_cross_entropy(cases, 49152, DType::bf16);
  add_sum_in_order(cases);
  add_optimizers(cases, 8064, 3072);
  add_optimizers(cases, 49152, 2048);
  return cases;
}

}  // namespace orchard::bench
