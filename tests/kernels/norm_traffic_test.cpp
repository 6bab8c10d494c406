// What the norms move, counted by the emulator (traffic_test.h).
#include "kernels/norm/norm.h"
#include "tests/kernels/traffic_test.h"

namespace orchard::testing {
namespace {

using NormTraffic = Traffic;

TEST_F(NormTraffic, OfANormWithResidualIsItsRows) {
  const std::int64_t rows = 4096, cols = 512;
  const Shape shape = {rows, cols};
  const std::size_t n = rows * cols, statistics = 4 * rows;
  const Tensor x = bf16s(shape), delta = bf16s(shape), sum = bf16s(shape), y = bf16s(shape);
  const Tensor weight = bf16s({cols}), bias = bf16s({cols}), mean = floats({rows});
  const Tensor inverse = floats({rows});
  expect_dram(
      "RmsNormForward with delta", shape,
      RmsNormForward{
          .x = x, .delta = delta, .weight = weight, .sum = sum, .y = y, .inverse_rms = inverse},
      4 * n + 2 * cols, 4 * n + statistics);
  expect_dram("LayerNormForward with delta", shape,
              LayerNormForward{.x = x,
                               .delta = delta,
                               .weight = weight,
                               .bias = bias,
                               .sum = sum,
                               .y = y,
                               .mean = mean,
                               .inverse_std = inverse},
              4 * n + 4 * cols, 4 * n + 2 * statistics);
}

// A block leaves its share of the gradients of weight and bias, which the next launch adds up: for each
// column 8 bytes, or 16, written and read, beside 8 of each row of its strip. Strips are shorter the
// wider the rows are, so that there are blocks for all SMs. The shares stay in the L2, which these counts
// take as empty at the start of a launch.
TEST_F(NormTraffic, OfANormBackwardIsItsRowsAndTheSharesOfStrips) {
  struct Rows {
    std::int64_t rows, cols, strip;
  };
  // Of the decoders 1b and 3b, whose strips 7b has, too; and rows of 30b, few: 4096 have strips of 32.
  for (const auto& [rows, cols, strip] :
       {Rows{4096, 2048, 16}, Rows{4096, 3072, 11}, Rows{256, 7168, 8}}) {
    const Shape shape = {rows, cols};
    const std::size_t n = rows * cols, of_weight = 2 * cols, of_gradient = 4 * cols;
    expect_dram("RmsNormBackward with d_sum", shape,
                RmsNormBackward{.x = bf16s(shape),
                                .weight = bf16s({cols}),
                                .inverse_rms = floats({rows}),
                                .d_y = bf16s(shape),
                                .d_sum = bf16s(shape),
                                .d_x = bf16s(shape),
                                .d_weight = floats({cols})},
                6 * n + of_weight + 4 * rows + of_gradient, 2 * n + of_gradient,
                1.01 / static_cast<double>(strip));
  }
  // Of the connector in stage 1.
  const std::int64_t rows = 11664, cols = 1024, strip = 32;
  const Shape shape = {rows, cols};
  const std::size_t n = rows * cols, of_weight = 2 * cols, of_gradients = 8 * cols;
  expect_dram("LayerNormBackward with d_sum", shape,
              LayerNormBackward{.x = bf16s(shape),
                                .weight = bf16s({cols}),
                                .mean = floats({rows}),
                                .inverse_std = floats({rows}),
                                .d_y = bf16s(shape),
                                .d_sum = bf16s(shape),
                                .d_x = bf16s(shape),
                                .d_weight = floats({cols}),
                                .d_bias = floats({cols})},
              6 * n + of_weight + 8 * rows + of_gradients, 2 * n + of_gradients,
              2.02 / static_cast<double>(strip));
}

// Each width of the presets, and one that no row in registers holds.
TEST_F(NormTraffic, OfAnyWidthIsItsRows) {
  for (const std::int64_t cols : {1024, 1280, 2048, 3072, 4096, 7168, 16400}) {
    const std::int64_t rows = 64;
    const Shape shape = {rows, cols};
    const std::size_t n = rows * cols, statistics = 4 * rows;
    const Tensor x = bf16s(shape), y = bf16s(shape), weight = bf16s({cols}), bias = bf16s({cols});
    const Tensor mean = floats({rows}), inverse = floats({rows});
    expect_dram("RmsNormForward", shape,
                RmsNormForward{.x = x, .weight = weight, .y = y, .inverse_rms = inverse},
                2 * n + 2 * cols, 2 * n + statistics);
    expect_dram(
        "LayerNormForward", shape,
        LayerNormForward{
            .x = x, .weight = weight, .bias = bias, .y = y, .mean = mean, .inverse_std = inverse},
        2 * n + 4 * cols, 2 * n + 2 * statistics);
  }
}

TEST_F(NormTraffic, OfQkNormIsItsHeads) {
  const std::int64_t tokens = 512, heads = 16, dim = 128;
  const Shape shape = {tokens, heads, dim};
  const std::size_t n = tokens * heads * dim, statistics = 4 * tokens * heads;
  const Tensor x = bf16s(shape), y = bf16s(shape), d_y = bf16s(shape), weight = bf16s({dim});
  const Tensor rotation = floats({tokens, dim}), inverse = floats({tokens, heads});
  std::vector<int> places(tokens);
  for (std::size_t i = 0; i < places.size(); ++i) places[i] = static_cast<int>(i);
  const Tensor positions = words(places), d_weight = floats({dim});
  const std::size_t shared = 2 * dim + 4 * tokens * dim + 4 * tokens;
  expect_dram("QkNormRopeForward", shape,
              QkNormRopeForward{.x = x,
                                .weight = weight,
                                .rotation = rotation,
                                .positions = positions,
                                .y = y,
                                .inverse_rms = inverse},
              2 * n + shared, 2 * n + statistics);
  expect_dram("QkNormRopeBackward", shape,
              QkNormRopeBackward{.x = x,
                                 .weight = weight,
                                 .rotation = rotation,
                                 .positions = positions,
                                 .inverse_rms = inverse,
                                 .d_y = d_y,
                                 .d_x = y,
                                 .d_weight = d_weight},
              4 * n + shared + statistics + 4 * dim, 2 * n + 4 * dim);
}

}  // namespace
}  // namespace orchard::testing
