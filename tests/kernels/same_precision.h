// How far a kernel's error may exceed what its precision costs: at most twice the error of the same
// formula, written as plainly as it reads and evaluated in the same precision. A bound derived from the
// arithmetic leaves room for the worst sums; this one asks what these sums, of these operands, cost.
//
// A formula is a function of an arithmetic. In Fp64 it is the reference. In Fp32 it is the plain
// evaluation: fp32, summed in the order of the loop, rounded to the dtype where the operation stores.
#pragma once

#include <algorithm>
#include <limits>

#include "tests/kernels/op_test.h"

namespace orchard::testing {

struct Fp64 {
  using Real = double;
  Real stored(Real value) const { return value; }
};

struct Fp32 {
  using Real = float;
  DType dtype;  // of what is stored
  Real stored(Real value) const { return dtype == DType::bf16 ? to_float(to_bf16(value)) : value; }
};

// A tensor with these values, rounded to its dtype.
template <class Real>
Guarded rounded_to(DType dtype, Shape shape, const std::vector<Real>& values) {
  Guarded out(dtype, shape);
  for (std::int64_t i = 0; i < out.size(); ++i) out.set(i, values[static_cast<std::size_t>(i)]);
  return out;
}

// What an element's error is measured by: its own size or, where it cancels, its row's.
inline std::vector<double> sizes_in_rows(const std::vector<double>& exact, std::int64_t cols) {
  std::vector<double> sizes(exact.size());
  const auto n = static_cast<std::size_t>(cols);
  for (std::size_t row = 0; row < exact.size(); row += n) {
    double squares = 0;
    for (std::size_t i = row; i < row + n; ++i) squares += exact[i] * exact[i];
    const double rms = std::sqrt(squares / static_cast<double>(n));
    for (std::size_t i = row; i < row + n; ++i) sizes[i] = std::max(std::abs(exact[i]), rms);
  }
  return sizes;
}

// The largest error, in the elements' sizes. Infinite where a NaN is, or an error of what has no size.
inline double largest_error(const Guarded& actual, const std::vector<double>& exact,
                            const std::vector<double>& sizes) {
  double largest = 0;
  for (std::size_t i = 0; i < exact.size(); ++i) {
    const double value = actual.at(static_cast<std::int64_t>(i));
    if (value == exact[i]) continue;  // infinities, too
    const double error = std::abs(value - exact[i]) / sizes[i];
    largest =
        std::max(largest, std::isnan(error) ? std::numeric_limits<double>::infinity() : error);
  }
  return largest;
}

// `plain` is the plain evaluation of what `actual` is; errors are against `exact`, in `sizes`. Beside
// twice the plain error one unit in the last place is allowed, since the plain error may be zero (a
// single rounding that happens to be exact) where another, equally good evaluation rounds the other way.
inline void expect_at_most_twice_plain_error(const Guarded& actual,
                                             const std::vector<double>& exact, const Guarded& plain,
                                             const std::vector<double>& sizes, const char* what) {
  ASSERT_EQ(static_cast<std::size_t>(actual.size()), exact.size()) << what;
  const double error = largest_error(actual, exact, sizes);
  const double plain_error = largest_error(plain, exact, sizes);
  ::testing::Test::RecordProperty(what, fmt::format("{:.3g} / {:.3g}", error, plain_error));
  EXPECT_LE(error, std::max(2 * plain_error, 2 * unit_roundoff(actual.dtype())))
      << what << ": the plain evaluation's error is " << plain_error;
}

// The same in sizes of rows, of the last dimension.
inline void expect_at_most_twice_plain_error(const Guarded& actual,
                                             const std::vector<double>& exact, const Guarded& plain,
                                             const char* what) {
  const std::int64_t cols = std::max<std::int64_t>(actual.shape()[actual.shape().rank() - 1], 1);
  expect_at_most_twice_plain_error(actual, exact, plain, sizes_in_rows(exact, cols), what);
}

}  // namespace orchard::testing
