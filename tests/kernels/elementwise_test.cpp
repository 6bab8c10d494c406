// Sums, conversions and reductions. Most results are exact: one rounding of an exact sum or
// product.
#include "kernels/elementwise/elementwise.h"

#include <limits>

#include "tests/kernels/checks.h"
#include "tests/kernels/device_test.h"

namespace orchard::testing {
namespace {

using Values = std::vector<double>;

double rounded(DType dtype, double value) {
  return dtype == DType::bf16 ? to_float(to_bf16(static_cast<float>(value)))
                              : static_cast<float>(value);
}

struct AddCase {
  DType dtype;
  Shape a, b;
  int shift = 0;  // elements by which a lies off alignment
};

using AddTensors = DeviceTest<AddCase>;

TEST_P(AddTensors, IsTheRoundedSumWithBRepeated) {
  const auto& [dtype, a_shape, b_shape, shift] = parameter();
  Guarded a = random_normal(dtype, a_shape, 1), b = random_normal(dtype, b_shape, 2);
  Guarded y(dtype, a_shape);
  OnDevice a_d = on_device(a, shift), b_d = on_device(b), y_d = on_device(y);
  run_repeatedly(stream(), Add{.a = a_d, .b = b_d, .y = y_d}, {&y_d});
  for (std::int64_t i = 0; i < a.size(); ++i) {
    // fp32 first: the sum of two floats is exact in double, and rounds once more to bf16.
    const auto sum = static_cast<float>(a.at(i) + b.at(i % b.size()));
    ASSERT_EQ(y.at(i), rounded(dtype, sum)) << i;
  }
  run_and_download(stream(), Add{.a = a_d, .b = b_d, .y = a_d}, {&a_d});
  EXPECT_TRUE(a == y) << "y cannot alias a";
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, AddTensors,
    ::testing::Combine(
        every_device(),
        ::testing::Values(
            AddCase{DType::f32, {1}, {1}}, AddCase{DType::f32, {7, 31}, {7, 31}},
            AddCase{DType::f32, {9001}, {9001}}, AddCase{DType::f32, {4096}, {4096}, 1},
            AddCase{DType::f32, {509, 17}, {17}}, AddCase{DType::f32, {3, 7, 300}, {7, 300}},
            AddCase{DType::f32, {5, 1}, {1}}, AddCase{DType::f32, {0, 4}, {4}},
            AddCase{DType::bf16, {3, 29, 127}, {29, 127}}, AddCase{DType::bf16, {37, 24}, {24}},
            AddCase{DType::bf16, {37, 24}, {24}, 4}, AddCase{DType::bf16, {10007}, {10007}})),
    device_test_name<AddCase>);

TEST(AddErrors, ABThatIsNoSuffixIsNamed) {
  Guarded a = zeros(DType::f32, {4, 3}), b = zeros(DType::f32, {4}), y = a;
  EXPECT_EQ(error_of(Add{.a = a, .b = b, .y = y}),
            "Add: b has shape [4], expected the innermost dimensions of a's [4, 3]");
}

struct SizeCase {
  std::int64_t size;
  int shift = 0;  // elements by which x lies off alignment
};

using ConvertTensors = DeviceTest<SizeCase>;

TEST_P(ConvertTensors, RoundsToNearestEven) {
  // Between 1 and 1 + 2^-7 lie the tie 1 + 2^-8 (to even: down) and its neighbours; the next tie
  // rounds up. Then the largest float, which rounds to infinity, a subnormal, and a NaN.
  const float infinity = std::numeric_limits<float>::infinity();
  const std::vector<std::pair<float, float>> pairs = {{1.0f + 0x1p-8f, 1.0f},
                                                      {1.0f + 0x1p-8f + 0x1p-23f, 1.0f + 0x1p-7f},
                                                      {1.0f + 0x1p-8f - 0x1p-23f, 1.0f},
                                                      {1.0f + 0x3p-8f, 1.0f + 0x1p-6f},
                                                      {-1.0f - 0x1p-8f, -1.0f},
                                                      {std::numeric_limits<float>::max(), infinity},
                                                      {-infinity, -infinity},
                                                      {0x1p-133f, 0x1p-133f},
                                                      {-0.0f, -0.0f}};
  const auto [size, shift] = parameter();
  Guarded x(DType::f32, {size}), y(DType::bf16, {size});
  for (std::int64_t i = 0; i < size; ++i) {
    x.set(i, pairs[static_cast<std::size_t>(i) % pairs.size()].first);
  }
  OnDevice x_d = on_device(x, shift), y_d = on_device(y);
  run_repeatedly(stream(), Convert{.x = x_d, .y = y_d}, {&y_d});
  for (std::int64_t i = 0; i < size; ++i) {
    const auto expected = pairs[static_cast<std::size_t>(i) % pairs.size()].second;
    ASSERT_EQ(y.at(i), expected) << i;
    ASSERT_EQ(std::signbit(y.at(i)), std::signbit(expected)) << i;
  }
  // All payload bits set: plain rounding would carry into the sign.
  for (std::int64_t i = 0; i < size; ++i) {
    x.tensor().data<float>()[i] = std::bit_cast<float>(0x7fffffffu);
  }
  x_d.upload();
  run_and_download(stream(), Convert{.x = x_d, .y = y_d}, {&y_d});
  for (std::int64_t i = 0; i < size; ++i) ASSERT_TRUE(std::isnan(y.at(i)));
}

TEST_P(ConvertTensors, WideningAndCopyingAreExact) {
  const auto [size, shift] = parameter();
  for (const DType from : {DType::f32, DType::bf16}) {
    for (const DType to : {DType::f32, DType::bf16}) {
      Guarded x = random_normal(from, {size}, 1), y(to, {size});
      OnDevice x_d = on_device(x, shift), y_d = on_device(y);
      run_repeatedly(stream(), Convert{.x = x_d, .y = y_d}, {&y_d});
      for (std::int64_t i = 0; i < size; ++i) ASSERT_EQ(y.at(i), rounded(to, x.at(i)));
    }
  }
}

using ScaleTensor = DeviceTest<SizeCase>;

TEST_P(ScaleTensor, IsTheRoundedProduct) {
  const auto [size, shift] = parameter();
  for (const DType dtype : {DType::f32, DType::bf16}) {
    Guarded x = random_normal(dtype, {size}, 1);
    const Guarded before = x;
    OnDevice x_d = on_device(x, shift);
    run_repeatedly(stream(), Scale{.x = x_d, .factor = 0.3f}, {&x_d});
    for (std::int64_t i = 0; i < size; ++i) {
      const auto product = static_cast<float>(before.at(i) * static_cast<double>(0.3f));
      ASSERT_EQ(x.at(i), rounded(dtype, product));
    }
  }
}

const auto sizes =
    ::testing::Values(SizeCase{0}, SizeCase{1}, SizeCase{15}, SizeCase{16}, SizeCase{17},
                      SizeCase{33}, SizeCase{64, 1}, SizeCase{5003}, SizeCase{9001, 3});

INSTANTIATE_TEST_SUITE_P(Sizes, ConvertTensors, ::testing::Combine(every_device(), sizes),
                         device_test_name<SizeCase>);
INSTANTIATE_TEST_SUITE_P(Sizes, ScaleTensor, ::testing::Combine(every_device(), sizes),
                         device_test_name<SizeCase>);

struct SumCase {
  DType dtype;
  std::int64_t rows, cols;
  int shift = 0;  // elements by which x lies off alignment
};

using ColumnSums = DeviceTest<SumCase>;

TEST_P(ColumnSums, AreAddedToTheTotal) {
  const auto [dtype, rows, cols, shift] = parameter();
  Guarded x = random_normal(dtype, {rows, cols}, 1), y = random_normal(DType::f32, {cols}, 2);
  Values expected = y.values();
  for (std::int64_t i = 0; i < x.size(); ++i)
    expected[static_cast<std::size_t>(i % cols)] += x.at(i);
  OnDevice x_d = on_device(x, shift), y_d = on_device(y);
  run_repeatedly(stream(), ColumnSum{.x = x_d, .y = y_d}, {&y_d});
  // fp32 sums of `rows` exact terms: random roundings grow like their square root, and each is
  // relative to a partial sum of at most a few sqrt(rows).
  expect_close(y, expected, 8 * std::sqrt(rows + 1) * unit_roundoff(DType::f32), "y");
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, ColumnSums,
    ::testing::Combine(
        every_device(),
        ::testing::Values(SumCase{DType::f32, 1, 1}, SumCase{DType::f32, 65, 17},
                          SumCase{DType::f32, 1031, 33}, SumCase{DType::f32, 130, 260},
                          SumCase{DType::f32, 130, 260, 1}, SumCase{DType::f32, 0, 5},
                          SumCase{DType::bf16, 3, 127}, SumCase{DType::bf16, 2049, 31},
                          SumCase{DType::bf16, 200, 8}, SumCase{DType::bf16, 65, 520})),
    device_test_name<SumCase>);

using SumOfSquaresOfATensor = DeviceTest<SizeCase>;

TEST_P(SumOfSquaresOfATensor, IsExactToFp32) {
  const auto [size, shift] = parameter();
  Guarded x = random_normal(DType::f32, {size}, 1), result(DType::f32, {1});
  double expected = 0;
  for (const double v : x.values()) expected += v * v;
  OnDevice x_d = on_device(x, shift), result_d = on_device(result);
  run_repeatedly(stream(), SumOfSquares{.x = x_d, .result = result_d}, {&result_d});
  // The fp64 sum is exact to 1e-12; storing rounds once.
  EXPECT_NEAR(result.at(0), expected, 1.01 * unit_roundoff(DType::f32) * expected);
}

INSTANTIATE_TEST_SUITE_P(
    Sizes, SumOfSquaresOfATensor,
    ::testing::Combine(every_device(),
                       ::testing::Values(SizeCase{0}, SizeCase{1}, SizeCase{15}, SizeCase{16},
                                         SizeCase{17}, SizeCase{4096}, SizeCase{4097},
                                         SizeCase{4099, 1}, SizeCase{100'003})),
    device_test_name<SizeCase>);

using SumOfSquaresRange = DeviceTest<SizeCase>;

TEST_P(SumOfSquaresRange, NeitherOverflowsNorLosesSmallTerms) {
  // 2^20 terms of 2^-24 beside one of 1: an fp32 sum would end at 1 or near it.
  Guarded x(DType::f32, {parameter().size}), result(DType::f32, {1});
  for (std::int64_t i = 0; i < x.size(); ++i) x.set(i, i ? 0x1p-12 : 1.0);
  OnDevice x_d = on_device(x), result_d = on_device(result);
  run_and_download(stream(), SumOfSquares{.x = x_d, .result = result_d}, {&result_d});
  EXPECT_EQ(result.at(0), 1.0 + 0x1p-4);
}

INSTANTIATE_TEST_SUITE_P(ManyTerms, SumOfSquaresRange,
                         ::testing::Combine(every_device(),
                                            ::testing::Values(SizeCase{(1 << 20) + 1})),
                         device_test_name<SizeCase>);

}  // namespace
}  // namespace orchard::testing
