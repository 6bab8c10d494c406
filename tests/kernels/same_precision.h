// How far a kernel's error may exceed what its precision costs: at most twice the error of the same
// formula, written as plainly as it reads and evaluated in the same precision. A bound derived from the
// arithmetic leaves room for the worst sums; this one asks what these sums, of these operands, cost.
//
// A formula is a template of its real numbers. In double it is the reference. In float it is the plain
// evaluation: summed in the order of the loops, rounded to the dtype where the operation rounds.
#pragma once

#include <algorithm>
#include <limits>
#include <type_traits>

#include "tests/kernels/op_test.h"

namespace orchard::testing {

// What an operation rounds to its dtype between its steps; the reference rounds nothing.
template <class Real>
Real rounded_between(DType dtype, Real value) {
  if constexpr (std::is_same_v<Real, float>) {
    if (dtype == DType::bf16) return to_float(to_bf16(value));
  }
  return value;
}

// A tensor with these values, rounded to its dtype.
template <class Real>
Guarded rounded_to(DType dtype, Shape shape, const std::vector<Real>& values) {
  Guarded out(dtype, shape);
  for (std::int64_t i = 0; i < out.size(); ++i) out.set(i, values[static_cast<std::size_t>(i)]);
  return out;
}

// The values of a tensor, as a formula takes them.
template <class Real>
std::vector<Real> values_as(const Guarded& tensor) {
  std::vector<Real> out;
  for (const double value : tensor.values()) out.push_back(static_cast<Real>(value));
  return out;
}

// What an element's error is measured by: its own size or, where it cancels, its row's.
inline std::vector<double> sizes_in_rows(const std::vector<double>& exact, std::int64_t cols) {
  std::vector<double> sizes(exact.size());
  const auto n = static_cast<std::size_t>(cols);
  for (std::size_t row = 0; row < exact.size(); row += n) {
    const std::size_t end = std::min(row + n, exact.size());  // a wrong length is reported later
    double squares = 0;
    for (std::size_t i = row; i < end; ++i) squares += exact[i] * exact[i];
    const double rms = std::sqrt(squares / static_cast<double>(n));
    for (std::size_t i = row; i < end; ++i) sizes[i] = std::max(std::abs(exact[i]), rms);
  }
  return sizes;
}

// Of the last dimension.
inline std::vector<double> sizes_in_rows(const std::vector<double>& exact, const Guarded& tensor) {
  return sizes_in_rows(exact, std::max<std::int64_t>(tensor.shape()[-1], 1));
}

// The largest error of a tensor's elements, each in units of its size, and where it is.
struct LargestError {
  double error = 0;
  std::size_t at = 0;
};

// Infinite where there is a NaN.
inline LargestError largest_error(const Guarded& actual, const std::vector<double>& exact,
                                  const std::vector<double>& sizes) {
  // Below this even a rounding to subnormals or zero is a roundoff at most.
  constexpr double least_size = std::numeric_limits<float>::min() * 0x1p24;
  LargestError largest;
  for (std::size_t i = 0; i < exact.size(); ++i) {
    const double value = actual.at(static_cast<std::int64_t>(i));
    if (value == exact[i]) continue;  // infinities, too
    double error = std::abs(value - exact[i]) / std::max(sizes[i], least_size);
    if (std::isnan(error)) error = std::numeric_limits<double>::infinity();
    if (error > largest.error) largest = {error, i};
  }
  return largest;
}

// More than any plain evaluation here costs. In bf16: attention's gradients have three roundings in a row.
// In fp32: a sum of 2^14 terms whose roundings all err one way.
inline double most_of_plain(DType dtype) {
  return (dtype == DType::bf16 ? 4 : 0x1p14) * unit_roundoff(dtype);
}

// `plain` is the plain evaluation of what `actual` is; errors are against `exact`. One unit in the last
// place is allowed in any case: the plain error may be zero, where a rounding happens to be exact, and
// another evaluation, as good, rounds the other way.
inline void expect_at_most_twice_plain_error(const Guarded& actual,
                                             const std::vector<double>& exact, const Guarded& plain,
                                             const std::vector<double>& sizes, const char* what) {
  ASSERT_EQ(static_cast<std::size_t>(actual.size()), exact.size()) << what;
  ASSERT_EQ(plain.size(), actual.size()) << what;
  ASSERT_EQ(sizes.size(), exact.size()) << what;
  const LargestError own = largest_error(actual, exact, sizes);
  const LargestError plainly = largest_error(plain, exact, sizes);
  ASSERT_LE(plainly.error, most_of_plain(actual.dtype()))
      << what << "[" << plainly.at << "], plainly evaluated, is "
      << plain.at(static_cast<std::int64_t>(plainly.at)) << ", exactly " << exact[plainly.at]
      << ": either it is wrong, or " << sizes[plainly.at] << " is not the size of its terms";
  ::testing::Test::RecordProperty(what, fmt::format("{:.3g} / {:.3g}", own.error, plainly.error));
  EXPECT_LE(own.error, std::max(2 * plainly.error, 2 * unit_roundoff(actual.dtype())))
      << what << "[" << own.at << "] of " << fmt::format("{}", actual.shape()) << " is "
      << actual.at(static_cast<std::int64_t>(own.at)) << ", exactly " << exact[own.at]
      << "; plainly " << plain.at(static_cast<std::int64_t>(own.at)) << ", and off by "
      << plainly.error << " at worst";
}

// The same in sizes of rows.
inline void expect_at_most_twice_plain_error(const Guarded& actual,
                                             const std::vector<double>& exact, const Guarded& plain,
                                             const char* what) {
  expect_at_most_twice_plain_error(actual, exact, plain, sizes_in_rows(exact, actual), what);
}

// Of plain values that are rounded here, as the operation rounds what it stores.
inline void expect_twice(const Guarded& actual, const std::vector<double>& exact,
                         const std::vector<float>& plain, const std::vector<double>& sizes,
                         const char* what) {
  ASSERT_EQ(static_cast<std::size_t>(actual.size()), plain.size()) << what;
  expect_at_most_twice_plain_error(actual, exact, rounded_to(actual.dtype(), actual.shape(), plain),
                                   sizes, what);
}
inline void expect_twice(const Guarded& actual, const std::vector<double>& exact,
                         const std::vector<float>& plain, const char* what) {
  expect_twice(actual, exact, plain, sizes_in_rows(exact, actual), what);
}

}  // namespace orchard::testing
