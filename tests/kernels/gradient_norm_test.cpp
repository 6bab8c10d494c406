// The norm of a gradient and its scale have the very bits of a plain fp64 evaluation, on every device.
#include "kernels/optimizer/gradient_norm.h"

#include <algorithm>
#include <bit>
#include <numeric>

#include "tests/kernels/checks.h"
#include "tests/kernels/device_test.h"

namespace orchard::testing {
namespace {

// fp64 numbers as the operations take them.
Guarded fp64(const std::vector<double>& values) {
  Guarded out(DType::i64, {std::ssize(values)});
  auto* const bits = out.tensor().data<std::int64_t>();
  std::ranges::transform(values, bits, [](double x) { return std::bit_cast<std::int64_t>(x); });
  return out;
}
std::int64_t bits_of(Guarded& t) {
  return *t.tensor().data<std::int64_t>();
}

// Of very different sizes: every other order of a few hundred gives other bits.
std::vector<double> squares(std::int64_t count) {
  const Guarded sizes = random_normal(DType::f32, {count}, 1, 8);
  std::vector<double> squares;
  for (const double size : sizes.values()) squares.push_back(static_cast<float>(std::exp(size)));
  return squares;
}

double in_order(const std::vector<double>& terms) {
  return std::accumulate(terms.begin(), terms.end(), 0.0);
}

using SumsInOrder = DeviceTest<std::int64_t>;  // the number of terms

TEST_P(SumsInOrder, AreThoseOfOneTermAfterTheOther) {
  std::vector<double> exact = squares(parameter());
  Guarded terms(DType::f32, {parameter()}), sum = fp64({-1});
  for (std::int64_t i = 0; i < parameter(); ++i) terms.set(i, exact[static_cast<std::size_t>(i)]);
  OnDevice terms_d = on_device(terms), sum_d = on_device(sum);
  run_repeatedly(stream(), SumInOrder{.terms = terms_d, .sum = sum_d}, {&sum_d});
  const double wanted = in_order(exact);
  EXPECT_EQ(bits_of(sum), std::bit_cast<std::int64_t>(wanted));
  if (parameter() < 100) return;
  std::ranges::reverse(exact);
  EXPECT_NE(in_order(exact), wanted) << "any order would do";
}

INSTANTIATE_TEST_SUITE_P(Sizes, SumsInOrder,
                         ::testing::Combine(every_device(),
                                            ::testing::Values<std::int64_t>(0, 1, 7, 8, 9, 1031)),
                         device_test_name<std::int64_t>);

class ClippedNorm : public DeviceTest<std::int64_t> {
 protected:
  // Of these sums of squares.
  void expect(const std::vector<double>& sums, double clip_norm, float wanted_scale) {
    Guarded terms = fp64(sums), norm = fp64({-1}), scale = number(-1);
    OnDevice terms_d = on_device(terms), norm_d = on_device(norm), scale_d = on_device(scale);
    run_repeatedly(
        stream(),
        ClipByNorm{.squares = terms_d, .clip_norm = clip_norm, .norm = norm_d, .scale = scale_d},
        {&norm_d, &scale_d});
    const auto value = std::bit_cast<double>(bits_of(norm)), wanted = std::sqrt(in_order(sums));
    if (std::isnan(wanted)) {
      EXPECT_TRUE(std::isnan(value)) << value;
    } else {
      EXPECT_EQ(value, wanted);
    }
    if (std::isnan(wanted_scale)) {
      EXPECT_TRUE(std::isnan(scale.at(0))) << scale.at(0);
    } else {
      EXPECT_EQ(scale.at(0), wanted_scale);
    }
  }
};

TEST_P(ClippedNorm, IsScaledDownToTheLimitAndNeverUp) {
  const std::vector<double> sums = squares(parameter());
  const double norm = std::sqrt(in_order(sums));
  expect(sums, 0, 1);
  expect(sums, 3 * norm, 1);
  expect(sums, norm, 1);
  expect(sums, norm / 3, static_cast<float>(norm / 3 / norm));
  expect(sums, 0.7, norm > 0.7 ? static_cast<float>(0.7 / norm) : 1.0f);
}

TEST_P(ClippedNorm, ThatIsNotFiniteHasNoScale) {
  for (const double bad : {std::nan(""), HUGE_VAL}) {
    std::vector<double> sums = squares(parameter());
    sums[sums.size() / 2] = bad;
    expect(sums, 0, std::nanf(""));
    expect(sums, 1, std::nanf(""));
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, ClippedNorm,
                         ::testing::Combine(every_device(),
                                            ::testing::Values<std::int64_t>(1, 2, 9, 300)),
                         device_test_name<std::int64_t>);

TEST(GradientNormErrors, WhatDoesNotFitIsNamed) {
  Guarded floats = zeros(DType::f32, {3}), wide = fp64({1, 2}), sum = fp64({0}), scale = number(0);
  EXPECT_EQ(error_of(SumInOrder{.terms = floats, .sum = wide}),
            "SumInOrder: sum has shape [2], expected [1]");
  EXPECT_EQ(error_of(ClipByNorm{.norm = sum, .scale = scale}),
            "ClipByNorm: a norm has at least one term");
  EXPECT_EQ(error_of(ClipByNorm{.squares = floats, .norm = sum, .scale = scale}),
            "ClipByNorm: squares has dtype f32, which the operation does not take");
}

}  // namespace
}  // namespace orchard::testing
