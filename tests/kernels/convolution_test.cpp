// Depthwise convolution and adaptive pooling against fp64 loops over the definitions.
#include "kernels/convolution/convolution.h"

#include "tests/kernels/thread_orders.h"

namespace orchard::testing {
namespace {

std::size_t at(std::int64_t i) {
  return static_cast<std::size_t>(i);
}

struct ConvCase {
  DType dtype;
  std::int64_t images, height, width, channels;
  int shift = 0;  // elements by which pixels miss their alignment
};

class DepthwiseConv : public DeviceTest<ConvCase> {
 protected:
  Shape shape() const {
    return {parameter().images, parameter().height, parameter().width, parameter().channels};
  }
  Shape weight_shape() const { return {parameter().channels, 3, 3}; }
  // Calls body(output element, tap, input element, weight element) for all pairs inside the
  // picture.
  template <class Body>
  void for_each_tap(const Body& body) const {
    const auto [dtype, images, height, width, channels, shift] = parameter();
    for (std::int64_t o = 0; o < images * height * width * channels; ++o) {
      const std::int64_t c = o % channels, j = o / channels % width;
      const std::int64_t i = o / channels / width % height;
      for (std::int64_t r = 0; r < 3; ++r) {
        for (std::int64_t s = 0; s < 3; ++s) {
          if (i + r < 1 || i + r > height || j + s < 1 || j + s > width) continue;
          body(o, o + ((r - 1) * width + s - 1) * channels, c * 9 + r * 3 + s);
        }
      }
    }
  }
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
  std::vector<double> expected(at(y.size()));
  for_each_tap([&](std::int64_t out, std::int64_t in, std::int64_t w) {
    expected[at(out)] += weight.at(w) * x.at(in);
  });
  expect_close(y, expected, bound(), "y");
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
  std::vector<double> expected(at(d_x.size()));
  for_each_tap([&](std::int64_t out, std::int64_t in, std::int64_t w) {
    expected[at(in)] += weight.at(w) * d_y.at(out);
  });
  expect_close(d_x, expected, bound(), "d_x");
}

TEST_P(DepthwiseConv, BackwardWeightAddsToTheGradient) {
  Guarded x = random_normal(parameter().dtype, shape(), 5);
  Guarded d_y = random_normal(parameter().dtype, shape(), 6);
  const Guarded before = random_normal(DType::f32, weight_shape(), 7);
  Guarded d_weight = before;
  std::vector<double> expected = before.values();
  for_each_tap([&](std::int64_t out, std::int64_t in, std::int64_t w) {
    expected[at(w)] += x.at(in) * d_y.at(out);
  });
  OnDevice x_d(stream(), x, parameter().shift), d_y_d(stream(), d_y, parameter().shift),
      d_weight_d(stream(), d_weight, parameter().shift);
  const DepthwiseConv3x3BackwardWeight op{.x = x_d, .d_y = d_y_d, .d_weight = d_weight_d};
  run_repeatedly(stream(), op, {&d_weight_d});
  // An fp32 sum of as many terms of size one as there are pixels.
  const auto pixels =
      static_cast<double>(1 + parameter().images * parameter().height * parameter().width);
  expect_close(d_weight, expected, 16 * std::sqrt(pixels) * unit_roundoff(DType::f32), "d_weight",
               1);
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

struct PoolCase {
  DType dtype;
  std::int64_t images, height, width, out_height, out_width, channels;
  int shift = 0;
};

class AdaptivePool : public DeviceTest<PoolCase> {
 protected:
  Shape in_shape() const {
    return {parameter().images, parameter().height, parameter().width, parameter().channels};
  }
  Shape out_shape() const {
    return {parameter().images, parameter().out_height, parameter().out_width,
            parameter().channels};
  }
  // Calls body(output element, input element, pixels of the output's bin), by the definition in
  // floating point: exact, since the quotients of numbers this small round to whole ones only when
  // they are whole.
  template <class Body>
  void for_each_pair(const Body& body) const {
    const auto [dtype, images, height, width, out_height, out_width, channels, shift] = parameter();
    const auto first = [](std::int64_t i, std::int64_t n, std::int64_t m) {
      return static_cast<std::int64_t>(
          std::floor(static_cast<double>(i * n) / static_cast<double>(m)));
    };
    const auto last = [](std::int64_t i, std::int64_t n, std::int64_t m) {
      return static_cast<std::int64_t>(
          std::ceil(static_cast<double>((i + 1) * n) / static_cast<double>(m)));
    };
    for (std::int64_t o = 0; o < images * out_height * out_width * channels; ++o) {
      const std::int64_t c = o % channels, j = o / channels % out_width;
      const std::int64_t i = o / channels / out_width % out_height;
      const std::int64_t image = o / channels / out_width / out_height;
      const std::int64_t top = first(i, height, out_height), bottom = last(i, height, out_height);
      const std::int64_t left = first(j, width, out_width), right = last(j, width, out_width);
      for (std::int64_t r = top; r < bottom; ++r) {
        for (std::int64_t s = left; s < right; ++s) {
          body(o, ((image * height + r) * width + s) * channels + c,
               static_cast<double>((bottom - top) * (right - left)));
        }
      }
    }
  }
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
  std::vector<double> expected(at(y.size()));
  for_each_pair([&](std::int64_t out, std::int64_t in, double area) {
    expected[at(out)] += x.at(in) / area;
  });
  expect_close(y, expected, bound(), "y");
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
    std::vector<double> expected =
        with_extra ? d_extra.values() : std::vector<double>(at(d_x.size()));
    for_each_pair([&](std::int64_t out, std::int64_t in, double area) {
      expected[at(in)] += d_y.at(out) / area;
    });
    expect_close(d_x, expected, bound(), "d_x");
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
