// quick-gelu, SiLU and SwiGLU against fp64 references.
#include "tests/kernels/activation_reference.h"
#include "tests/kernels/checks.h"
#include "tests/kernels/device_test.h"

namespace orchard::testing {
namespace {

using Values = std::vector<double>;

// Two roundings of the dtype at most, and fp32 errors: a dozen roundings, and that of k·x, which
// the exponential multiplies by |k·x| < 16.
double bound(DType dtype) {
  return 2 * unit_roundoff(dtype) + 32 * unit_roundoff(DType::f32);
}

struct Case {
  Activation kind;
  DType dtype;
  std::int64_t size;
  int shift = 0;  // elements by which x lies off alignment
};

using Activations = DeviceTest<Case>;

TEST_P(Activations, MatchReferenceForwardAndBackward) {
  const auto [kind, dtype, size, shift] = parameter();
  Guarded x = random_normal(dtype, {size}, 1, 3), d_y = random_normal(dtype, {size}, 2);
  Guarded y(dtype, {size}), d_x(dtype, {size});
  OnDevice x_d = on_device(x, shift), d_y_d = on_device(d_y);
  OnDevice y_d = on_device(y), d_x_d = on_device(d_x);
  run_repeatedly(stream(), ActivationForward{.kind = kind, .x = x_d, .y = y_d}, {&y_d});
  run_repeatedly(stream(), ActivationBackward{.kind = kind, .x = x_d, .d_y = d_y_d, .d_x = d_x_d},
                 {&d_x_d});
  Values expected, expected_gradient;
  for (std::int64_t i = 0; i < size; ++i) {
    expected.push_back(activated(kind, x.at(i)));
    expected_gradient.push_back(d_y.at(i) * activation_slope(kind, x.at(i)));
  }
  expect_close(y, expected, bound(dtype), "y");
  expect_close(d_x, expected_gradient, bound(dtype), "d_x");

  run_and_download(stream(), ActivationBackward{.kind = kind, .x = x_d, .d_y = d_y_d, .d_x = d_y_d},
                   {&d_y_d});
  EXPECT_TRUE(d_y == d_x) << "d_x cannot alias d_y";
  run_and_download(stream(), ActivationForward{.kind = kind, .x = x_d, .y = x_d}, {&x_d});
  EXPECT_TRUE(x == y) << "y cannot alias x";
}

// Of a kind: empty, single, about a vector, and enough for several blocks.
std::vector<Case> cases_of(Activation kind) {
  return {{kind, DType::f32, 0},      {kind, DType::f32, 1},       {kind, DType::f32, 15},
          {kind, DType::f32, 17},     {kind, DType::f32, 10007},   {kind, DType::f32, 64, 1},
          {kind, DType::bf16, 1},     {kind, DType::bf16, 31},     {kind, DType::bf16, 10007},
          {kind, DType::bf16, 72, 3}, {kind, DType::bf16, 4096, 1}};
}

INSTANTIATE_TEST_SUITE_P(QuickGelu, Activations,
                         ::testing::Combine(every_device(),
                                            ::testing::ValuesIn(cases_of(Activation::quick_gelu))),
                         device_test_name<Case>);
INSTANTIATE_TEST_SUITE_P(Silu, Activations,
                         ::testing::Combine(every_device(),
                                            ::testing::ValuesIn(cases_of(Activation::silu))),
                         device_test_name<Case>);

TEST(ActivationReference, SlopeIsTheDerivative) {
  for (const Activation kind : {Activation::quick_gelu, Activation::silu}) {
    const Values x = random_normal(DType::f32, {8}, 1, 2).values();
    Values gradient;
    for (const double v : x) gradient.push_back(activation_slope(kind, v));
    expect_gradient(
        [&](const Values& at) {
          double total = 0;
          for (const double v : at) total += activated(kind, v);
          return total;
        },
        x, gradient, "slope");
  }
}

// The exponential and the sigmoid claim 2 and 3 units in the last place; a product adds half a one.
TEST(ActivationAccuracy, SigmoidKeepsItsRelativeAccuracyOverTheWholeRange) {
  constexpr std::int64_t size = 200'001;
  Guarded x(DType::f32, {size}), y(DType::f32, {size});
  for (std::int64_t i = 0; i < size; ++i) x.set(i, -88.0 + 188.0 * static_cast<double>(i) / size);
  run(*cpu_device().make_stream(), ActivationForward{.kind = Activation::silu, .x = x, .y = y});
  double worst = 0;
  for (std::int64_t i = 0; i < size; ++i) {
    const double expected = activated(Activation::silu, x.at(i));
    if (expected != 0) worst = std::max(worst, std::abs(y.at(i) / expected - 1));
  }
  EXPECT_LE(worst, 3.5 * 2 * unit_roundoff(DType::f32));
}

// For all finite bf16, subnormal results among them: half a unit in the last place for the one
// rounding, and 2^-17 of the sigmoid before it. Where the sigmoid itself
// would be subnormal it is zero.
TEST(ActivationAccuracy, RoundedSiluIsTheNearestBf16ButForNearTies) {
  std::vector<float> inputs;
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = std::bit_cast<float>(bits << 16);
    if (std::isfinite(value)) inputs.push_back(value);
  }
  const auto size = static_cast<std::int64_t>(inputs.size());
  Guarded x(DType::bf16, {size}), y(DType::bf16, {size});
  for (std::int64_t i = 0; i < size; ++i) x.set(i, inputs[static_cast<std::size_t>(i)]);
  run(*cpu_device().make_stream(), ActivationForward{.kind = Activation::silu, .x = x, .y = y});
  constexpr double subnormal_half = 0x1p-134;
  for (std::int64_t i = 0; i < size; ++i) {
    const double expected = activated(Activation::silu, x.at(i));
    if (x.at(i) < -87) {
      EXPECT_LE(std::abs(y.at(i)), 2e-36) << x.at(i);
      continue;
    }
    const double half_unit =
        std::max(std::ldexp(unit_roundoff(DType::bf16), std::ilogb(expected)), subnormal_half);
    ASSERT_LE(std::abs(y.at(i) - expected), half_unit + 0x1p-17 * std::abs(expected)) << x.at(i);
  }
}

using ActivationRange = DeviceTest<DType>;

TEST_P(ActivationRange, HugeInputsSaturateAndNaNsSurvive) {
  const float infinity = std::numeric_limits<float>::infinity();
  const Values inputs = {-3e38, -1000, -100, 100, 1000, 3e38, infinity, std::nan("")};
  const DType dtype = parameter();
  Guarded x(dtype, {8}), y(dtype, {8}), d_y(dtype, {8}), d_x(dtype, {8});
  for (std::int64_t i = 0; i < 8; ++i) x.set(i, inputs[static_cast<std::size_t>(i)]), d_y.set(i, 1);
  OnDevice x_d = on_device(x), y_d = on_device(y), d_y_d = on_device(d_y), d_x_d = on_device(d_x);
  run_and_download(stream(), ActivationForward{.kind = Activation::silu, .x = x_d, .y = y_d},
                   {&y_d});
  for (const std::int64_t i : {0, 1, 2}) EXPECT_EQ(y.at(i), 0) << x.at(i);
  for (const std::int64_t i : {3, 4, 5, 6}) EXPECT_EQ(y.at(i), x.at(i));
  EXPECT_TRUE(std::isnan(y.at(7)));
  run_and_download(
      stream(), ActivationBackward{.kind = Activation::silu, .x = x_d, .d_y = d_y_d, .d_x = d_x_d},
      {&d_x_d});
  for (const std::int64_t i : {0, 1, 2}) EXPECT_EQ(d_x.at(i), 0) << x.at(i);
  for (const std::int64_t i : {3, 4, 5}) EXPECT_EQ(d_x.at(i), 1);
  EXPECT_TRUE(std::isnan(d_x.at(7)));
}

INSTANTIATE_TEST_SUITE_P(Types, ActivationRange,
                         ::testing::Combine(every_device(),
                                            ::testing::Values(DType::f32, DType::bf16)),
                         device_test_name<DType>);

struct GluCase {
  DType dtype;
  std::int64_t rows, cols, active;  // active < 0: no row_count
  int shift = 0;                    // elements by which gate lies off alignment
};

using SwiGlu = DeviceTest<GluCase>;

TEST_P(SwiGlu, MatchesReferenceAndLeavesInactiveRowsAlone) {
  const auto [dtype, rows, cols, active, shift] = parameter();
  const Shape shape = {rows, cols};
  Guarded gate = random_normal(dtype, shape, 1, 2), up = random_normal(dtype, shape, 2);
  Guarded d_y = random_normal(dtype, shape, 3), y = random_normal(dtype, shape, 4);
  Guarded d_gate = random_normal(dtype, shape, 5), d_up = random_normal(dtype, shape, 6);
  Guarded again = y, row_count = integers({1}, std::vector<int>{static_cast<int>(active)});
  Values expected_y = y.values(), expected_gate = d_gate.values(), expected_up = d_up.values();
  const std::int64_t size = (active < 0 ? rows : active) * cols;
  for (std::int64_t i = 0; i < size; ++i) {
    const auto at = static_cast<std::size_t>(i);
    expected_y[at] = activated(Activation::silu, gate.at(i)) * up.at(i);
    expected_gate[at] = d_y.at(i) * up.at(i) * activation_slope(Activation::silu, gate.at(i));
    expected_up[at] = d_y.at(i) * activated(Activation::silu, gate.at(i));
  }
  OnDevice gate_d = on_device(gate, shift), up_d = on_device(up), d_y_d = on_device(d_y);
  OnDevice y_d = on_device(y), d_gate_d = on_device(d_gate), d_up_d = on_device(d_up);
  OnDevice again_d = on_device(again), row_count_d = on_device(row_count);
  SwiGluForward forward{.gate = gate_d, .up = up_d, .y = y_d};
  SwiGluBackward backward{
      .gate = gate_d, .up = up_d, .d_y = d_y_d, .d_gate = d_gate_d, .d_up = d_up_d, .y = again_d};
  if (active >= 0) forward.row_count = backward.row_count = row_count_d.tensor();
  run_repeatedly(stream(), forward, {&y_d});
  run_repeatedly(stream(), backward, {&d_gate_d, &d_up_d, &again_d});
  expect_close(y, expected_y, bound(dtype), "y");
  expect_close(d_gate, expected_gate, bound(dtype), "d_gate");
  expect_close(d_up, expected_up, bound(dtype), "d_up");
  EXPECT_TRUE(again == y) << "the recomputed output differs from forward's";

  // In place, and without y: the same gradients.
  backward.d_gate = gate_d.tensor(), backward.d_up = up_d.tensor(), backward.y = {};
  run_and_download(stream(), backward, {&gate_d, &up_d});
  for (std::int64_t i = 0; i < size; ++i) {
    ASSERT_EQ(gate.at(i), d_gate.at(i));
    ASSERT_EQ(up.at(i), d_up.at(i));
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, SwiGlu,
                         ::testing::Combine(every_device(),
                                            ::testing::Values(GluCase{DType::f32, 1, 1, -1},
                                                              GluCase{DType::f32, 7, 17, 0},
                                                              GluCase{DType::f32, 7, 17, 5},
                                                              GluCase{DType::f32, 131, 127, 130},
                                                              GluCase{DType::f32, 0, 64, -1},
                                                              GluCase{DType::bf16, 3, 31, 2},
                                                              GluCase{DType::bf16, 67, 129, -1},
                                                              GluCase{DType::bf16, 67, 128, 33},
                                                              GluCase{DType::bf16, 5, 64, 4, 1})),
                         device_test_name<GluCase>);

TEST(SwiGluErrors, ARowCountBeyondTheBufferIsNamed) {
  Guarded gate = zeros(DType::f32, {4, 2}), up = gate, y = gate;
  Guarded row_count = integers({1}, std::vector<int>{5});
  EXPECT_EQ(error_of(SwiGluForward{.gate = gate, .up = up, .y = y, .row_count = row_count}),
            "SwiGluForward: row_count is 5, but gate has 4 rows");
}

}  // namespace
}  // namespace orchard::testing
