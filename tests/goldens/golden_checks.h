// Comparison of fp32 results with goldens.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <span>
#include <string>

#include "parallel/parameter.h"
#include "tests/goldens/golden_values.h"

namespace orchard::testing::golden {

inline void fill(Tensor t, std::string_view name, float scale = 1, float shift = 0) {
  for (std::int64_t i = 0; i < t.numel(); ++i) t.data<float>()[i] = shift + scale * value(name, i);
}

// Norm scales around 1, everything else around 0.
inline void fill_parameters(ParameterStore& store) {
  for (Parameter& p : store.parameters()) {
    const bool scale = p.spec.initializer == Initializer::ones;
    fill(p.master, p.spec.name, scale ? 0.25f : 0.5f, scale ? 1.0f : 0.0f);
  }
}

// Each element within `tolerance` of the largest one.
inline void expect_close(ConstTensor t, std::span<const double> golden, double tolerance,
                         const std::string& what) {
  ASSERT_EQ(t.numel(), static_cast<std::int64_t>(golden.size())) << what;
  double largest = 0;
  for (const double g : golden) largest = std::max(largest, std::abs(g));
  for (std::size_t i = 0; i < golden.size(); ++i)
    ASSERT_NEAR(t.data<float>()[i], golden[i], tolerance * largest) << what << ", element " << i;
}

inline void expect_equal(ConstTensor t, std::span<const int> golden, const std::string& what) {
  ASSERT_GE(t.numel(), static_cast<std::int64_t>(golden.size())) << what;
  for (std::size_t i = 0; i < golden.size(); ++i)
    ASSERT_EQ(t.data<std::int32_t>()[i], golden[i]) << what << ", element " << i;
}

// `floor` is what may be left of a tensor that is zero in exact arithmetic.
inline void expect_summary(ConstTensor t, const Summary& golden, double tolerance, double floor) {
  double squares = 0, first = 0, second = 0;
  const std::string name(golden.name);
  for (std::int64_t i = 0; i < t.numel(); ++i) {
    const double v = t.data<float>()[i];
    squares += v * v;
    first += v * value("first direction of " + name, i);
    second += v * value("second direction of " + name, i);
  }
  const double bound = tolerance * golden.norm + floor;
  EXPECT_NEAR(std::sqrt(squares), golden.norm, bound) << name << ", norm";
  EXPECT_NEAR(first, golden.first, bound) << name << ", first direction";
  EXPECT_NEAR(second, golden.second, bound) << name << ", second direction";
}

}  // namespace orchard::testing::golden
