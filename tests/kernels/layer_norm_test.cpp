// LayerNorm against an fp64 reference.
#include "tests/kernels/checks.h"
#include "tests/kernels/device_test.h"
#include "tests/kernels/norm_reference.h"

namespace orchard::testing {
namespace {

using Values = std::vector<double>;

struct Case {
  DType dtype;
  std::int64_t rows, cols;
  bool residual;  // delta forward, d_sum backward
  int shift = 0;  // elements by which x lies off alignment
};

using Statistics = NormStatistics<double>;
using Gradients = NormGradients<double>;

Statistics statistics(const Values& x, std::size_t row, std::size_t cols) {
  return norm_statistics(NormKind::layer, x, row, cols);
}

Values reference(const Values& x, const Values& weight, const Values& bias) {
  return norm_reference(NormKind::layer, x, weight, bias);
}

Gradients reference_gradients(const Values& x, const Values& weight, const Values& d_y) {
  return norm_reference_gradients(NormKind::layer, x, weight, d_y);
}

class LayerNorm : public DeviceTest<Case> {
 protected:
  // The result passes through at most four roundings of the dtype (input, weight, bias, store) and
  // means whose fp32 error grows like sqrt(cols): 8 roundoffs of the dtype plus 16·sqrt(cols) of
  // fp32 leave a factor of two.
  double bound() const {
    return 8 * unit_roundoff(parameter().dtype) +
           16 * std::sqrt(parameter().cols) * unit_roundoff(DType::f32);
  }
};

TEST_P(LayerNorm, ForwardMatchesReference) {
  const auto [dtype, rows, cols, residual, shift] = parameter();
  // A mean of 3 deviations: a one-pass variance or a forgotten mean would show.
  Guarded x = random_normal(dtype, {rows, cols}, 1, 1, 3);
  Guarded delta = random_normal(dtype, {rows, cols}, 2);
  Guarded weight = random_normal(dtype, {cols}, 3), bias = random_normal(dtype, {cols}, 4);
  Guarded y(dtype, {rows, cols}), sum(dtype, {rows, cols});
  Guarded mean(DType::f32, {rows}), inverse_std(DType::f32, {rows});
  OnDevice x_d = on_device(x, shift), delta_d = on_device(delta), weight_d = on_device(weight);
  OnDevice bias_d = on_device(bias), y_d = on_device(y), sum_d = on_device(sum);
  OnDevice mean_d = on_device(mean), inverse_std_d = on_device(inverse_std);
  LayerNormForward op{.x = x_d,
                      .weight = weight_d,
                      .bias = bias_d,
                      .y = y_d,
                      .mean = mean_d,
                      .inverse_std = inverse_std_d};
  if (residual) op.delta = delta_d.tensor(), op.sum = sum_d.tensor();
  run_repeatedly(stream(), op, {&y_d, &sum_d, &mean_d, &inverse_std_d});

  if (residual) {
    Values expected = x.values();
    const Values added = delta.values();
    for (std::size_t i = 0; i < expected.size(); ++i) expected[i] += added[i];
    expect_close(sum, expected, unit_roundoff(dtype), "sum");  // one rounding
  }
  const Values input = residual ? sum.values() : x.values();
  expect_close(y, reference(input, weight.values(), bias.values()), bound(), "y");
  Values means, inverses;
  for (std::int64_t r = 0; r < rows; ++r) {
    const Statistics s =
        statistics(input, static_cast<std::size_t>(r), static_cast<std::size_t>(cols));
    means.push_back(s.mean), inverses.push_back(s.inverse);
  }
  const double fp32_sums = 8 * std::sqrt(cols) * unit_roundoff(DType::f32);
  expect_close(mean, means, fp32_sums, "mean");
  expect_close(inverse_std, inverses, fp32_sums, "inverse_std");
}

TEST_P(LayerNorm, BackwardMatchesReference) {
  const auto [dtype, rows, cols, residual, shift] = parameter();
  Guarded x = random_normal(dtype, {rows, cols}, 1, 1, 3);
  Guarded d_y = random_normal(dtype, {rows, cols}, 2),
          d_sum = random_normal(dtype, {rows, cols}, 5);
  Guarded weight = random_normal(dtype, {cols}, 3), bias = random_normal(dtype, {cols}, 4);
  Guarded y(dtype, {rows, cols}), d_x(dtype, {rows, cols});
  Guarded mean(DType::f32, {rows}), inverse_std(DType::f32, {rows});
  Guarded d_weight = random_normal(DType::f32, {cols}, 6), d_bias = zeros(DType::f32, {cols});
  const Values before = d_weight.values();
  OnDevice x_d = on_device(x, shift), d_y_d = on_device(d_y), d_sum_d = on_device(d_sum);
  OnDevice weight_d = on_device(weight), bias_d = on_device(bias), y_d = on_device(y);
  OnDevice mean_d = on_device(mean), inverse_std_d = on_device(inverse_std);
  OnDevice d_x_d = on_device(d_x), d_weight_d = on_device(d_weight), d_bias_d = on_device(d_bias);
  run_and_download(stream(),
                   LayerNormForward{.x = x_d,
                                    .weight = weight_d,
                                    .bias = bias_d,
                                    .y = y_d,
                                    .mean = mean_d,
                                    .inverse_std = inverse_std_d},
                   {&inverse_std_d});
  LayerNormBackward op{.x = x_d,
                       .weight = weight_d,
                       .mean = mean_d,
                       .inverse_std = inverse_std_d,
                       .d_y = d_y_d,
                       .d_x = d_x_d,
                       .d_weight = d_weight_d,
                       .d_bias = d_bias_d};
  if (residual) op.d_sum = d_sum_d.tensor();
  run_repeatedly(stream(), op, {&d_x_d, &d_weight_d, &d_bias_d});

  Gradients expected = reference_gradients(x.values(), weight.values(), d_y.values());
  if (residual) {
    const Values added = d_sum.values();
    for (std::size_t i = 0; i < expected.x.size(); ++i) expected.x[i] += added[i];
  }
  for (std::size_t c = 0; c < before.size(); ++c) expected.weight[c] += before[c];
  // A single column is all cancellation (x equals its mean): its terms are d_y·w·inverse_std. Of a
  // few columns some row is nearly constant: a rounding of x, which is about 3, counts there as
  // much as inverse_std makes of it.
  double terms = cols == 1 ? std::abs(d_y.at(0) * weight.at(0) * inverse_std.at(0)) : 0;
  if (cols == 5) {
    for (std::int64_t r = 0; r < rows; ++r) terms = std::max(terms, 3 * inverse_std.at(r));
  }
  expect_close(d_x, expected.x, bound(), "d_x", terms);
  // fp32 sums of `rows` terms; the mean and deviation read here carry fp32 errors of their own.
  const double sums = 16 * std::sqrt(rows) * unit_roundoff(DType::f32) +
                      16 * std::sqrt(cols) * unit_roundoff(DType::f32);
  expect_close(d_weight, expected.weight, sums, "d_weight");
  expect_close(d_bias, expected.bias, sums, "d_bias");
}

// First what is awkward anywhere; then each row length that the GPU kernels treat in a way of its
// own, with several rows in a block or strip.
INSTANTIATE_TEST_SUITE_P(
    Shapes, LayerNorm,
    ::testing::Combine(
        every_device(),
        ::testing::Values(Case{DType::f32, 1, 1, false}, Case{DType::f32, 3, 17, true},
                          Case{DType::f32, 131, 64, false}, Case{DType::f32, 65, 127, true},
                          Case{DType::f32, 16, 129, false}, Case{DType::f32, 0, 8, false},
                          Case{DType::f32, 1100, 5, true}, Case{DType::bf16, 1, 1, false},
                          Case{DType::bf16, 3, 17, true}, Case{DType::bf16, 131, 64, true},
                          Case{DType::bf16, 257, 509, false}, Case{DType::f32, 9, 64, true, 1},
                          Case{DType::bf16, 9, 64, true, 4}, Case{DType::bf16, 35, 264, true},
                          Case{DType::bf16, 35, 1024, true}, Case{DType::bf16, 19, 1280, false},
                          Case{DType::bf16, 9, 2056, true}, Case{DType::bf16, 5, 8192, true},
                          Case{DType::bf16, 3, 8200, true}, Case{DType::f32, 19, 516, true},
                          Case{DType::f32, 5, 1280, true}, Case{DType::f32, 3, 8196, false},
                          Case{DType::f32, 5, 200, true}, Case{DType::f32, 5, 500, false},
                          Case{DType::f32, 3, 4096, true}, Case{DType::f32, 3, 8192, false})),
    device_test_name<Case>);

TEST(LayerNormReference, GradientsAreThoseOfTheForward) {
  const Values x = random_normal(DType::f32, {3, 7}, 1).values();
  const Values weight = random_normal(DType::f32, {7}, 2).values();
  const Values bias = random_normal(DType::f32, {7}, 3).values();
  const Values d_y = random_normal(DType::f32, {3, 7}, 4).values();
  const Gradients d = reference_gradients(x, weight, d_y);
  expect_gradient([&](const Values& v) { return dot(d_y, reference(v, weight, bias)); }, x, d.x,
                  "d_x");
  expect_gradient([&](const Values& v) { return dot(d_y, reference(x, v, bias)); }, weight,
                  d.weight, "d_weight");
  expect_gradient([&](const Values& v) { return dot(d_y, reference(x, weight, v)); }, bias, d.bias,
                  "d_bias");
}

using LayerNormAliasing = DeviceTest<Case>;

TEST_P(LayerNormAliasing, OutputsMayOverwriteInputs) {
  const auto [dtype, rows, cols, residual, shift] = parameter();
  const Shape shape = {rows, cols};
  Guarded x = random_normal(dtype, shape, 1), d_y = random_normal(dtype, shape, 2);
  Guarded weight = random_normal(dtype, {cols}, 3), bias = random_normal(dtype, {cols}, 4);
  Guarded y(dtype, shape), d_x(dtype, shape), in_place = x;
  Guarded mean(DType::f32, {rows}), inverse_std(DType::f32, {rows});
  OnDevice x_d = on_device(x), d_y_d = on_device(d_y), weight_d = on_device(weight);
  OnDevice bias_d = on_device(bias), y_d = on_device(y), d_x_d = on_device(d_x);
  OnDevice mean_d = on_device(mean), inverse_std_d = on_device(inverse_std);
  OnDevice in_place_d = on_device(in_place);
  LayerNormForward forward{.x = x_d,
                           .weight = weight_d,
                           .bias = bias_d,
                           .y = y_d,
                           .mean = mean_d,
                           .inverse_std = inverse_std_d};
  run_and_download(stream(), forward, {&y_d});
  forward.x = forward.y = in_place_d.tensor();
  run_and_download(stream(), forward, {&in_place_d});
  EXPECT_TRUE(in_place == y);
  LayerNormBackward backward{.x = x_d,
                             .weight = weight_d,
                             .mean = mean_d,
                             .inverse_std = inverse_std_d,
                             .d_y = d_y_d,
                             .d_x = d_x_d};
  run_and_download(stream(), backward, {&d_x_d});
  backward.d_x = d_y_d.tensor();
  run_and_download(stream(), backward, {&d_y_d});
  EXPECT_TRUE(d_y == d_x);
}

INSTANTIATE_TEST_SUITE_P(Shapes, LayerNormAliasing,
                         ::testing::Combine(every_device(),
                                            ::testing::Values(Case{DType::bf16, 5, 37, false},
                                                              Case{DType::bf16, 5, 40, false})),
                         device_test_name<Case>);

TEST(LayerNormErrors, NameTheOperandAndItsShape) {
  Guarded x = zeros(DType::f32, {2, 4}), weight = zeros(DType::f32, {4}), bias = weight;
  Guarded y = x, mean = zeros(DType::f32, {2}), inverse_std = zeros(DType::f32, {3});
  EXPECT_EQ(error_of(LayerNormForward{.x = x,
                                      .weight = weight,
                                      .bias = bias,
                                      .y = y,
                                      .mean = mean,
                                      .inverse_std = inverse_std}),
            "LayerNormForward: inverse_std has shape [3], expected [2]");
  EXPECT_EQ(error_of(LayerNormBackward{.x = x,
                                       .weight = weight,
                                       .mean = mean,
                                       .inverse_std = mean,
                                       .d_y = y,
                                       .d_x = x,
                                       .d_weight = weight}),
            "LayerNormBackward: d_weight and d_bias are wanted together");
}

}  // namespace
}  // namespace orchard::testing
