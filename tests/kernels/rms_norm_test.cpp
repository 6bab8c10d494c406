// RMSNorm against an fp64 reference.
#include "tests/kernels/device_test.h"
#include "tests/kernels/norm_reference.h"
#include "tests/kernels/simt_policy.h"

namespace orchard::testing {
namespace {

struct Case {
  DType dtype;
  std::int64_t rows, cols;
  bool with_delta;
};

// The result passes through at most four roundings of the dtype (sum, norm, weight, store) and a
// mean whose fp32 error grows like sqrt(cols): 8 roundoffs of the dtype plus 8·sqrt(cols) of fp32
// leave a factor of two.
double bound(const Case& c) {
  return 8 * unit_roundoff(c.dtype) +
         8 * std::sqrt(static_cast<double>(c.cols)) * unit_roundoff(DType::f32);
}

using RmsNormForwardOnDevice = DeviceTest<Case>;

TEST_P(RmsNormForwardOnDevice, MatchesReference) {
  const auto [dtype, rows, cols, with_delta] = parameter();
  Guarded x = random_normal(dtype, {rows, cols}, 1), delta = random_normal(dtype, {rows, cols}, 2);
  Guarded weight = random_normal(dtype, {cols}, 3);
  Guarded y(dtype, {rows, cols}), sum(dtype, {rows, cols}), inverse_rms(DType::f32, {rows});
  OnDevice x_d(stream(), x), delta_d(stream(), delta), weight_d(stream(), weight);
  OnDevice y_d(stream(), y), sum_d(stream(), sum), inverse_rms_d(stream(), inverse_rms);
  RmsNormForward op{.x = x_d, .weight = weight_d, .y = y_d, .inverse_rms = inverse_rms_d};
  if (with_delta) op.delta = delta_d, op.sum = sum_d;
  run_repeatedly(stream(), op, {&y_d, &sum_d, &inverse_rms_d});

  for (std::int64_t i = 0; with_delta && i < rows * cols; ++i) {
    // Values stay below 8: one rounding.
    ASSERT_NEAR(sum.at(i), x.at(i) + delta.at(i), unit_roundoff(dtype) * 16);
  }
  const std::vector<double> input = (with_delta ? sum : x).values();
  const std::vector<double> expected = norm_reference(NormKind::rms, input, weight.values(), {});
  std::vector<double> expected_inverse;
  for (std::size_t r = 0; r < input.size() / static_cast<std::size_t>(cols); ++r) {
    expected_inverse.push_back(
        norm_statistics(NormKind::rms, input, r, static_cast<std::size_t>(cols)).inverse);
  }
  expect_close(y, expected, bound(parameter()), "y");
  // No rounding to the dtype on the way: the fp32 part of the bound alone.
  expect_close(inverse_rms, expected_inverse, bound({DType::f32, rows, cols, with_delta}),
               "inverse_rms");
}

// Rows that do not start on 16 bytes: no vector access may touch them.
TEST_P(RmsNormForwardOnDevice, TakesRowsOfAnyAlignment) {
  const auto [dtype, rows, cols, with_delta] = parameter();
  const std::int64_t size = rows * cols;
  Guarded x = random_normal(dtype, {size + 1}, 1), y(dtype, {size + 1});
  Guarded aligned_x(dtype, {rows, cols}), aligned_y(dtype, {rows, cols});
  for (std::int64_t i = 0; i < size; ++i) aligned_x.set(i, x.at(i + 1));
  Guarded weight = random_normal(dtype, {cols}, 3), inverse_rms(DType::f32, {rows});
  OnDevice x_d(stream(), x), y_d(stream(), y), weight_d(stream(), weight);
  OnDevice aligned_x_d(stream(), aligned_x), aligned_y_d(stream(), aligned_y);
  OnDevice inverse_rms_d(stream(), inverse_rms);
  RmsNormForward op{
      .x = aligned_x_d, .weight = weight_d, .y = aligned_y_d, .inverse_rms = inverse_rms_d};
  run(stream(), op);
  op.x = x_d.tensor().slice(1, size).reshape({rows, cols});
  op.y = y_d.tensor().slice(1, size).reshape({rows, cols});
  run(stream(), op);
  for (OnDevice* const output : {&y_d, &aligned_y_d}) output->download();
  stream().synchronize();
  std::vector<double> actual = y.values();
  actual.erase(actual.begin());
  // Both roundings of one exact value: the sums differ in order only.
  Guarded shifted(dtype, {rows, cols});
  for (std::int64_t i = 0; i < size; ++i) shifted.set(i, actual[static_cast<std::size_t>(i)]);
  expect_close(shifted, aligned_y.values(), bound(parameter()), "y");
}

struct OnSimt {
  Guarded y;
  simt::Counters counters;
};

// bf16 [4, cols], with delta or without.
OnSimt run_on_simt(std::int64_t cols, bool with_delta, const SimtOptions& options) {
  const std::int64_t rows = 4;
  Guarded x = random_normal(DType::bf16, {rows, cols}, 1), delta = x, sum = x, y = x;
  Guarded weight = random_normal(DType::bf16, {cols}, 2), inverse_rms(DType::f32, {rows});
  const auto device = make_policy_device(options);
  const auto stream = device->make_stream();
  OnDevice x_d(*stream, x), delta_d(*stream, delta), weight_d(*stream, weight);
  OnDevice y_d(*stream, y), sum_d(*stream, sum), inverse_rms_d(*stream, inverse_rms);
  RmsNormForward op{.x = x_d, .weight = weight_d, .y = y_d, .inverse_rms = inverse_rms_d};
  if (with_delta) op.delta = delta_d, op.sum = sum_d;
  run(*stream, op);
  y_d.download();
  stream->synchronize();
  return {y, device->counters()};
}

TEST(RmsNormOnGpu, MovesEachByteOnceInFullSectors) {
  for (const bool with_delta : {false, true}) {
    const auto [y, counters] = run_on_simt(2048, with_delta, {.counting = simt::Counting::on});
    // A row of 2048 bf16 is 8 requests of 32 lanes of 16 bytes: 16 sectors each.
    const std::uint64_t row = 4 * 8, tensors = with_delta ? 2 : 1;
    const std::uint64_t loads = row * (tensors + 1), stores = row * tensors;  // 1: the weight
    EXPECT_EQ(counters.loads, (simt::AccessCounters{.requests = loads,
                                                    .sectors = 16 * loads,
                                                    .ideal_sectors = 16 * loads,
                                                    .bytes = 512 * loads}));
    // And four bytes for each of four rows: inverse_rms.
    EXPECT_EQ(counters.stores, (simt::AccessCounters{.requests = stores + 4,
                                                     .sectors = 16 * stores + 4,
                                                     .ideal_sectors = 16 * stores + 4,
                                                     .bytes = 512 * stores + 16}));
    EXPECT_EQ(counters.block_barriers, 0u) << "a row of 4 KB is one warp's";
  }
}

TEST(RmsNormOnGpu, DoesNotDependOnTheOrderOfThreads) {
  for (const std::int64_t cols : {2048, 4096, 509}) {
    const OnSimt fifo = run_on_simt(cols, true, {});
    EXPECT_TRUE(fifo.y == run_on_simt(cols, true, {.order = simt::ThreadOrder::reverse}).y);
    for (const std::uint64_t seed : {1, 2, 3}) {
      const SimtOptions options{.order = simt::ThreadOrder::random, .seed = seed};
      EXPECT_TRUE(fifo.y == run_on_simt(cols, true, options).y) << "seed " << seed;
    }
  }
}

struct BackwardCase {
  DType dtype;
  std::int64_t rows, cols;
  bool with_d_sum;
  int shift = 0;  // elements by which x lies off alignment
};

using RmsNormBackwardOnDevice = DeviceTest<BackwardCase>;

TEST_P(RmsNormBackwardOnDevice, MatchesReference) {
  const auto [dtype, rows, cols, with_d_sum, shift] = parameter();
  const double rounding = bound({dtype, rows, cols, with_d_sum});
  Guarded x = random_normal(dtype, {rows, cols}, 1), d_y = random_normal(dtype, {rows, cols}, 2);
  Guarded weight = random_normal(dtype, {cols}, 3), d_sum = random_normal(dtype, {rows, cols}, 4);
  Guarded inverse_rms(DType::f32, {rows}), y(dtype, {rows, cols}), d_x(dtype, {rows, cols});
  Guarded d_weight = random_normal(DType::f32, {cols}, 5);
  OnDevice x_d = on_device(x, shift), d_y_d = on_device(d_y), d_sum_d = on_device(d_sum);
  OnDevice weight_d = on_device(weight), y_d = on_device(y), d_x_d = on_device(d_x);
  OnDevice inverse_rms_d = on_device(inverse_rms), d_weight_d = on_device(d_weight);

  NormGradients<double> expected =
      norm_reference_gradients(NormKind::rms, x.values(), weight.values(), d_y.values());
  for (std::int64_t i = 0; with_d_sum && i < rows * cols; ++i) {
    expected.x[static_cast<std::size_t>(i)] += d_sum.at(i);
  }
  for (std::int64_t c = 0; c < cols; ++c) {
    expected.weight[static_cast<std::size_t>(c)] += d_weight.at(c);
  }

  run(stream(),
      RmsNormForward{.x = x_d, .weight = weight_d, .y = y_d, .inverse_rms = inverse_rms_d});
  RmsNormBackward op{.x = x_d,
                     .weight = weight_d,
                     .inverse_rms = inverse_rms_d,
                     .d_y = d_y_d,
                     .d_x = d_x_d,
                     .d_weight = d_weight_d};
  if (with_d_sum) op.d_sum = d_sum_d.tensor();
  run_repeatedly(stream(), op, {&d_x_d, &d_weight_d});
  // A single column is all cancellation (y does not depend on |x|): its terms have the size of
  // d_y·w / |x|.
  expect_close(d_x, expected.x, rounding, "d_x",
               cols == 1 ? std::abs(d_y.at(0) * weight.at(0) / x.at(0)) : 0);
  // fp32 sums of `rows` terms, each with a few fp32 roundings.
  expect_close(d_weight, expected.weight,
               16 * std::sqrt(rows) * unit_roundoff(DType::f32) + rounding * (dtype == DType::f32),
               "d_weight");

  op.d_weight = {}, op.d_x = d_y_d.tensor();
  run_and_download(stream(), op, {&d_y_d});
  EXPECT_TRUE(d_y == d_x) << "d_x cannot alias d_y";
}

const auto shapes = ::testing::Values(
    Case{DType::f32, 1, 1, false}, Case{DType::f32, 3, 17, true}, Case{DType::f32, 131, 64, false},
    Case{DType::f32, 65, 127, true}, Case{DType::f32, 16, 129, false},
    Case{DType::f32, 0, 8, false}, Case{DType::bf16, 1, 1, false}, Case{DType::bf16, 3, 17, true},
    Case{DType::bf16, 131, 64, true}, Case{DType::bf16, 257, 509, false});

// Each row length that the GPU kernels treat in a way of its own, at its two ends.
const auto gpu_row_lengths =
    ::testing::Values(Case{DType::bf16, 5, 256, false}, Case{DType::bf16, 5, 264, true},
                      Case{DType::bf16, 5, 1024, true}, Case{DType::bf16, 5, 1032, false},
                      Case{DType::bf16, 3, 2048, true}, Case{DType::bf16, 3, 2056, true},
                      Case{DType::bf16, 3, 4096, false}, Case{DType::bf16, 2, 7168, true},
                      Case{DType::bf16, 2, 16384, true}, Case{DType::bf16, 2, 16392, true},
                      Case{DType::f32, 5, 132, true}, Case{DType::f32, 5, 260, false},
                      Case{DType::f32, 3, 1024, true}, Case{DType::f32, 3, 4096, true},
                      Case{DType::f32, 2, 8192, false}, Case{DType::f32, 2, 8196, true});

INSTANTIATE_TEST_SUITE_P(Shapes, RmsNormForwardOnDevice, ::testing::Combine(every_device(), shapes),
                         device_test_name<Case>);
INSTANTIATE_TEST_SUITE_P(GpuRowLengths, RmsNormForwardOnDevice,
                         ::testing::Combine(every_device(), gpu_row_lengths),
                         device_test_name<Case>);

// The variants of the GPU kernel with rows in registers, each at its longest row or beyond the one
// before, with one group of rows or several in a block and enough rows for several strips. Then
// those that none takes: too long, or off alignment.
INSTANTIATE_TEST_SUITE_P(
    Shapes, RmsNormBackwardOnDevice,
    ::testing::Combine(
        every_device(),
        ::testing::Values(
            BackwardCase{DType::f32, 1, 1, false}, BackwardCase{DType::f32, 3, 17, true},
            BackwardCase{DType::f32, 131, 64, false}, BackwardCase{DType::f32, 65, 127, true},
            BackwardCase{DType::f32, 16, 129, false}, BackwardCase{DType::f32, 0, 8, false},
            BackwardCase{DType::f32, 35, 512, true}, BackwardCase{DType::f32, 19, 516, false},
            BackwardCase{DType::f32, 9, 1028, true}, BackwardCase{DType::f32, 9, 4096, true},
            BackwardCase{DType::f32, 5, 4100, true}, BackwardCase{DType::f32, 7, 64, true, 1},
            BackwardCase{DType::bf16, 1, 1, false}, BackwardCase{DType::bf16, 3, 17, true},
            BackwardCase{DType::bf16, 131, 64, true}, BackwardCase{DType::bf16, 257, 509, false},
            BackwardCase{DType::bf16, 35, 1024, true}, BackwardCase{DType::bf16, 19, 1032, true},
            BackwardCase{DType::bf16, 9, 2056, false}, BackwardCase{DType::bf16, 9, 8192, true},
            BackwardCase{DType::bf16, 3, 8200, true}, BackwardCase{DType::bf16, 7, 64, true, 4})),
    device_test_name<BackwardCase>);

TEST(RmsNormErrors, NameTheOperandAndItsShape) {
  Guarded x = zeros(DType::f32, {2, 4}), weight = zeros(DType::f32, {3}),
          y = zeros(DType::f32, {2, 4});
  Guarded inverse_rms = zeros(DType::f32, {2});
  const auto stream = cpu_device().make_stream();
  try {
    run(*stream, RmsNormForward{.x = x, .weight = weight, .y = y, .inverse_rms = inverse_rms});
    FAIL() << "a weight of the wrong length was accepted";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "RmsNormForward: weight has shape [3], expected [4]");
  }
}

}  // namespace
}  // namespace orchard::testing
