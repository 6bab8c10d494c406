// Depthwise convolution and adaptive pooling against fp64 loops over the definitions.
#include "kernels/convolution/convolution.h"

#include "tests/kernels/convolution_reference.h"
#include "tests/kernels/thread_orders.h"

namespace orchard::testing {
namespace {

class DepthwiseConv : public DeviceTest<ConvCase> {
 protected:
  Shape shape() const { return parameter().shape(); }
  Shape weight_shape() const { return parameter().weight_shape(); }
  // One rounding to the dtype, and an fp32 sum of nine terms of about the result's size.
  double bound() const { return unit_roundoff(parameter().dtype) + 32 * unit_roundoff(DType::f32); }
};

TEST_P(DepthwiseConv, ForwardMatchesReference) {
  Guarded x = random_normal(parameter().dtype, shape(), 1);
  Guarded weight = random_normal(parameter().dtype, weight_shape(), 2),
          y(parameter().dtype, shape());
  OnDevice x_d(stream(), x, parameter().shift), weight_d(stream(), weight, parameter().shift),
      y_d(stream(), y, parameter().shift);
  const DepthwiseConv3x3Forward op{.x = x_d, .weight = weight_d, .y = y_d};
  run_repeatedly(stream(), op, {&y_d});
  expect_close(y, convolved<double>(parameter(), x, weight), bound(), "y");
}

TEST_P(DepthwiseConv, BackwardInputMatchesReference) {
  Guarded d_y = random_normal(parameter().dtype, shape(), 3);
  Guarded weight = random_normal(parameter().dtype, weight_shape(), 4);
  Guarded d_x(parameter().dtype, shape());
  OnDevice d_y_d(stream(), d_y, parameter().shift), weight_d(stream(), weight, parameter().shift),
      d_x_d(stream(), d_x, parameter().shift);
  run_repeatedly(stream(),
                 DepthwiseConv3x3BackwardInput{.d_y = d_y_d, .weight = weight_d, .d_x = d_x_d},
                 {&d_x_d});
  expect_close(d_x, convolution_d_x<double>(parameter(), d_y, weight), bound(), "d_x");
}

TEST_P(DepthwiseConv, BackwardWeightAddsToTheGradient) {
  Guarded x = random_normal(parameter().dtype, shape(), 5);
  Guarded d_y = random_normal(parameter().dtype, shape(), 6);
  const Guarded before = random_normal(DType::f32, weight_shape(), 7);
  Guarded d_weight = before;
  OnDevice x_d(stream(), x, parameter().shift), d_y_d(stream(), d_y, parameter().shift),
      d_weight_d(stream(), d_weight, parameter().shift);
  const DepthwiseConv3x3BackwardWeight op{.x = x_d, .d_y = d_y_d, .d_weight = d_weight_d};
  run_repeatedly(stream(), op, {&d_weight_d});
  // An fp32 sum of as many terms of size one as there are pixels.
  const auto pixels =
      static_cast<double>(1 + parameter().images * parameter().height * parameter().width);
  expect_close(d_weight, convolution_d_weight<double>(parameter(), x, d_y, before),
               16 * std::sqrt(pixels) * unit_roundoff(DType::f32), "d_weight", 1);
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, DepthwiseConv,
    ::testing::Combine(
        every_device(),
        ::testing::Values(ConvCase{DType::f32, 1, 1, 1, 1}, ConvCase{DType::f32, 0, 3, 3, 4},
                          ConvCase{DType::f32, 2, 1, 5, 17}, ConvCase{DType::f32, 2, 5, 1, 3},
                          ConvCase{DType::f32, 1, 4, 2, 255},
                          ConvCase{DType::f32, 3, 7, 9, 257},
                          ConvCase{DType::bf16, 2, 5, 6, 31},
                          ConvCase{DType::bf16, 1, 8, 8, 512}, ConvCase{DType::bf16, 9, 9, 13, 7},
                          ConvCase{DType::bf16, 1, 3, 17, 264}, ConvCase{DType::f32, 5, 4, 8, 12},
                          ConvCase{DType::bf16, 1, 3, 3, 16, 1},
                          ConvCase{DType::f32, 1, 3, 3, 16, 2})),
    device_test_name<ConvCase>);

class AdaptivePool : public DeviceTest<PoolCase> {
 protected:
  Shape in_shape() const { return parameter().in_shape(); }
  Shape out_shape() const { return parameter().out_shape(); }
  // One rounding to the dtype, and an fp32 sum of as many terms as the larger side's bin has.
  double bound() const {
    const auto [dtype, images, height, width, out_height, out_width, channels, shift] = parameter();
    const double pixels = static_cast<double>(height * width + out_height * out_width);
    return unit_roundoff(dtype) + 16 * std::sqrt(pixels) * unit_roundoff(DType::f32);
  }
};

TEST_P(AdaptivePool, ForwardAveragesOverlappingBins) {
  Guarded x = random_normal(parameter().dtype, in_shape(), 1), y(parameter().dtype, out_shape());
  OnDevice x_d(stream(), x, parameter().shift), y_d(stream(), y, parameter().shift);
  run_repeatedly(stream(), AdaptiveAveragePoolForward{.x = x_d, .y = y_d}, {&y_d});
  expect_close(y, pooled<double>(parameter(), x), bound(), "y");
}

TEST_P(AdaptivePool, BackwardAddsUpOverlappingBins) {
  Guarded d_y = random_normal(parameter().dtype, out_shape(), 2),
          d_x(parameter().dtype, in_shape());
  Guarded d_extra = random_normal(parameter().dtype, in_shape(), 3);
  OnDevice d_y_d(stream(), d_y, parameter().shift), d_extra_d(stream(), d_extra, parameter().shift),
      d_x_d(stream(), d_x, parameter().shift);
  for (const bool with_extra : {false, true}) {
    const AdaptiveAveragePoolBackward op{
        .d_y = d_y_d, .d_extra = with_extra ? d_extra_d.tensor() : Tensor(), .d_x = d_x_d};
    run_repeatedly(stream(), op, {&d_x_d});
    expect_close(d_x, pool_d_x<double>(parameter(), d_y, with_extra ? &d_extra : nullptr), bound(),
                 "d_x");
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, AdaptivePool,
    ::testing::Combine(
        every_device(),
        ::testing::Values(
            PoolCase{DType::f32, 1, 1, 1, 1, 1, 1}, PoolCase{DType::f32, 0, 4, 4, 2, 2, 8},
            PoolCase{DType::f32, 2, 27, 27, 12, 12, 17},
            PoolCase{DType::f32, 1, 16, 16, 4, 4, 33}, PoolCase{DType::f32, 3, 8, 8, 4, 4, 300},
            PoolCase{DType::f32, 2, 7, 5, 1, 1, 257},
            PoolCase{DType::f32, 2, 3, 5, 7, 8, 9},  // output larger than the input
            PoolCase{DType::f32, 1, 5, 3, 3, 5, 4}, PoolCase{DType::bf16, 2, 27, 13, 12, 5, 31},
            PoolCase{DType::bf16, 4, 6, 6, 1, 1, 512}, PoolCase{DType::bf16, 1, 13, 11, 1, 1, 132},
            PoolCase{DType::bf16, 1, 7, 7, 1, 1, 31}, PoolCase{DType::f32, 1, 6, 6, 1, 1, 12},
            PoolCase{DType::bf16, 1, 9, 8, 4, 3, 264}, PoolCase{DType::bf16, 1, 4, 5, 2, 3, 33},
            PoolCase{DType::bf16, 1, 4, 4, 2, 2, 16}, PoolCase{DType::bf16, 2, 4, 4, 2, 2, 16, 1})),
    device_test_name<PoolCase>);

TEST(ConvolutionOnGpu, SumsAlikeInEveryOrderOfThreads) {
  Guarded x = random_normal(DType::bf16, {3, 6, 5, 40}, 1),
          d_y = random_normal(DType::bf16, {3, 6, 5, 40}, 2);
  expect_same_in_every_thread_order([&](Stream& stream) {
    Guarded d_weight = random_normal(DType::f32, {40, 3, 3}, 3), mean(DType::bf16, {3, 1, 1, 40});
    OnDevice x_d(stream, x), d_y_d(stream, d_y), d_weight_d(stream, d_weight), mean_d(stream, mean);
    run(stream, DepthwiseConv3x3BackwardWeight{.x = x_d, .d_y = d_y_d, .d_weight = d_weight_d});
    run(stream, AdaptiveAveragePoolForward{.x = x_d, .y = mean_d});
    for (OnDevice* const output : {&d_weight_d, &mean_d}) output->download();
    stream.synchronize();
    return std::vector<Guarded>{d_weight, mean};
  });
}

TEST(ConvolutionErrors, NameTheOperand) {
  Guarded x = zeros(DType::f32, {1, 2, 2, 4}), y = zeros(DType::f32, {1, 2, 2, 5});
  Guarded weight = zeros(DType::f32, {4, 3, 3});
  const auto stream = cpu_device().make_stream();
  try {
    run(*stream, DepthwiseConv3x3Forward{.x = x, .weight = weight, .y = y});
    FAIL() << "an output with other channels was accepted";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(),
                 "DepthwiseConv3x3Forward: y has shape [1, 2, 2, 5], expected [1, 2, 2, 4]");
  }
}

}  // namespace
}  // namespace orchard::testing
