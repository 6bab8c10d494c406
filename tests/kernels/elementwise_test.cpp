// Sums, conversions and reductions. Most results are exact: one rounding of an exact sum or
// product.
#include "kernels/elementwise/elementwise.h"

#include <limits>

#include "tests/kernels/checks.h"

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
};

class AddTensors : public ::testing::TestWithParam<AddCase> {};

TEST_P(AddTensors, IsTheRoundedSumWithBRepeated) {
  const auto& [dtype, a_shape, b_shape] = GetParam();
  Guarded a = random_normal(dtype, a_shape, 1), b = random_normal(dtype, b_shape, 2);
  Guarded y(dtype, a_shape);
  run_repeatedly(Add{.a = a, .b = b, .y = y}, {&y});
  for (std::int64_t i = 0; i < a.size(); ++i) {
    // fp32 first: the sum of two floats is exact in double, and rounds once more to bf16.
    const auto sum = static_cast<float>(a.at(i) + b.at(i % b.size()));
    ASSERT_EQ(y.at(i), rounded(dtype, sum)) << i;
  }
  Guarded in_place = a;
  run(*cpu_device().make_stream(), Add{.a = in_place, .b = b, .y = in_place});
  EXPECT_TRUE(in_place == y) << "y cannot alias a";
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, AddTensors,
    ::testing::Values(AddCase{DType::f32, {1}, {1}}, AddCase{DType::f32, {7, 31}, {7, 31}},
                      AddCase{DType::f32, {9001}, {9001}}, AddCase{DType::f32, {509, 17}, {17}},
                      AddCase{DType::f32, {3, 7, 300}, {7, 300}}, AddCase{DType::f32, {5, 1}, {1}},
                      AddCase{DType::f32, {0, 4}, {4}},
                      AddCase{DType::bf16, {3, 29, 127}, {29, 127}},
                      AddCase{DType::bf16, {10007}, {10007}}));

TEST(AddErrors, ABThatIsNoSuffixIsNamed) {
  Guarded a = zeros(DType::f32, {4, 3}), b = zeros(DType::f32, {4}), y = a;
  EXPECT_EQ(error_of(Add{.a = a, .b = b, .y = y}),
            "Add: b has shape [4], expected the innermost dimensions of a's [4, 3]");
}

TEST(ConvertTensors, RoundsToNearestEven) {
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
  for (const std::int64_t size : {1, 15, 16, 17, 33, 5003}) {
    Guarded x(DType::f32, {size}), y(DType::bf16, {size});
    for (std::int64_t i = 0; i < size; ++i) {
      x.set(i, pairs[static_cast<std::size_t>(i) % pairs.size()].first);
    }
    run_repeatedly(Convert{.x = x, .y = y}, {&y});
    for (std::int64_t i = 0; i < size; ++i) {
      const auto expected = pairs[static_cast<std::size_t>(i) % pairs.size()].second;
      ASSERT_EQ(y.at(i), expected) << i;
      ASSERT_EQ(std::signbit(y.at(i)), std::signbit(expected)) << i;
    }
  }
  Guarded x(DType::f32, {20}), y(DType::bf16, {20});
  // All payload bits set: plain rounding would carry into the sign.
  for (std::int64_t i = 0; i < 20; ++i) {
    x.tensor().data<float>()[i] = std::bit_cast<float>(0x7fffffffu);
  }
  run(*cpu_device().make_stream(), Convert{.x = x, .y = y});
  for (std::int64_t i = 0; i < 20; ++i) ASSERT_TRUE(std::isnan(y.at(i)));
}

TEST(ConvertTensors, WideningAndCopyingAreExact) {
  for (const DType from : {DType::f32, DType::bf16}) {
    for (const DType to : {DType::f32, DType::bf16}) {
      for (const std::int64_t size : {0, 1, 31, 9001}) {
        Guarded x = random_normal(from, {size}, 1), y(to, {size});
        run_repeatedly(Convert{.x = x, .y = y}, {&y});
        for (std::int64_t i = 0; i < size; ++i) ASSERT_EQ(y.at(i), rounded(to, x.at(i)));
      }
    }
  }
}

TEST(ScaleTensor, IsTheRoundedProduct) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const std::int64_t size : {0, 1, 15, 17, 9001}) {
      Guarded x = random_normal(dtype, {size}, 1);
      const Guarded before = x;
      run_repeatedly(Scale{.x = x, .factor = 0.3f}, {&x});
      for (std::int64_t i = 0; i < size; ++i) {
        const auto product = static_cast<float>(before.at(i) * static_cast<double>(0.3f));
        ASSERT_EQ(x.at(i), rounded(dtype, product));
      }
    }
  }
}

struct SumCase {
  DType dtype;
  std::int64_t rows, cols;
};

class ColumnSums : public ::testing::TestWithParam<SumCase> {};

TEST_P(ColumnSums, AreAddedToTheTotal) {
  const auto [dtype, rows, cols] = GetParam();
  Guarded x = random_normal(dtype, {rows, cols}, 1), y = random_normal(DType::f32, {cols}, 2);
  Values expected = y.values();
  for (std::int64_t i = 0; i < x.size(); ++i)
    expected[static_cast<std::size_t>(i % cols)] += x.at(i);
  run_repeatedly(ColumnSum{.x = x, .y = y}, {&y});
  // fp32 sums of `rows` exact terms: random roundings grow like their square root, and each is
  // relative to a partial sum of at most a few sqrt(rows).
  expect_close(y, expected, 8 * std::sqrt(rows + 1) * unit_roundoff(DType::f32), "y");
}

INSTANTIATE_TEST_SUITE_P(Shapes, ColumnSums,
                         ::testing::Values(SumCase{DType::f32, 1, 1}, SumCase{DType::f32, 65, 17},
                                           SumCase{DType::f32, 1031, 33}, SumCase{DType::f32, 0, 5},
                                           SumCase{DType::bf16, 3, 127},
                                           SumCase{DType::bf16, 2049, 31}));

TEST(SumOfSquaresOfATensor, IsExactToFp32) {
  for (const std::int64_t size : {0, 1, 15, 16, 17, 16384, 16385, 100'003}) {
    Guarded x = random_normal(DType::f32, {size}, 1), result(DType::f32, {1});
    double expected = 0;
    for (const double v : x.values()) expected += v * v;
    run_repeatedly(SumOfSquares{.x = x, .result = result}, {&result});
    // The fp64 sum is exact to 1e-12; storing rounds once.
    EXPECT_NEAR(result.at(0), expected, 1.01 * unit_roundoff(DType::f32) * expected) << size;
  }
}

TEST(SumOfSquaresOfATensor, NeitherOverflowsNorLosesSmallTerms) {
  // 2^20 terms of 2^-24 beside one of 1: an fp32 sum would end at 1 or near it.
  Guarded x(DType::f32, {(1 << 20) + 1}), result(DType::f32, {1});
  for (std::int64_t i = 0; i < x.size(); ++i) x.set(i, i ? 0x1p-12 : 1.0);
  run(*cpu_device().make_stream(), SumOfSquares{.x = x, .result = result});
  EXPECT_EQ(result.at(0), 1.0 + 0x1p-4);
}

}  // namespace
}  // namespace orchard::testing
