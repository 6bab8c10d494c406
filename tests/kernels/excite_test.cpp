// Squeeze-and-excitation's scaling against an fp64 reference.
#include "tests/kernels/checks.h"
#include "tests/kernels/device_test.h"
#include "tests/kernels/excite_reference.h"

namespace orchard::testing {
namespace {

using Values = std::vector<double>;

struct Case {
  DType dtype;
  std::int64_t images, pixels, channels;
  int shift = 0;  // elements by which x lies off alignment
};

using Excite = DeviceTest<Case>;

TEST_P(Excite, MatchesReferenceForwardAndBackward) {
  const Case& c = parameter();
  const Shape shape = {c.images, c.pixels, c.channels};
  Guarded x = random_normal(c.dtype, shape, 1), d_y = random_normal(c.dtype, shape, 2);
  Guarded scale = random_normal(c.dtype, {c.images, c.channels}, 3, 2), d_scale = scale;
  Guarded y(c.dtype, shape), d_x(c.dtype, shape);
  OnDevice x_d = on_device(x, c.shift), d_y_d = on_device(d_y), scale_d = on_device(scale);
  OnDevice y_d = on_device(y), d_x_d = on_device(d_x), d_scale_d = on_device(d_scale);
  run_repeatedly(stream(), ExciteForward{.x = x_d, .scale = scale_d, .y = y_d}, {&y_d});
  ExciteBackward backward{
      .x = x_d, .scale = scale_d, .d_y = d_y_d, .d_x = d_x_d, .d_scale = d_scale_d};
  run_repeatedly(stream(), backward, {&d_x_d, &d_scale_d});
  // One rounding of the dtype at the store and a dozen of fp32; the sum over pixels adds
  // sqrt(pixels) more, and its terms may cancel.
  const double store = 2 * unit_roundoff(c.dtype) + 16 * unit_roundoff(DType::f32);
  const ExciteReference<double> expected(shape, x.values(), scale.values(), d_y.values());
  expect_close(y, expected.y, store, "y");
  expect_close(d_x, expected.d_x, store, "d_x");
  expect_close(d_scale, expected.d_scale,
               store + 8 * std::sqrt(c.pixels) * unit_roundoff(DType::f32), "d_scale");

  Guarded in_place = x;
  OnDevice in_place_d = on_device(in_place, c.shift);
  run_and_download(stream(), ExciteForward{.x = in_place_d, .scale = scale_d, .y = in_place_d},
                   {&in_place_d});
  EXPECT_TRUE(in_place == y) << "y cannot alias x";
  backward.d_x = d_y_d.tensor(), backward.d_scale = scale_d.tensor();
  run_and_download(stream(), backward, {&d_y_d, &scale_d});
  EXPECT_TRUE(d_y == d_x) << "d_x cannot alias d_y";
  EXPECT_TRUE(scale == d_scale) << "d_scale cannot alias scale";
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, Excite,
    ::testing::Combine(every_device(),
                       ::testing::Values(Case{DType::f32, 1, 1, 1}, Case{DType::f32, 3, 9, 17},
                                         Case{DType::f32, 2, 144, 64}, Case{DType::f32, 2, 131, 31},
                                         Case{DType::f32, 2, 67, 132, 1}, Case{DType::f32, 0, 4, 8},
                                         Case{DType::f32, 2, 0, 8}, Case{DType::bf16, 1, 1100, 5},
                                         Case{DType::bf16, 3, 67, 127},
                                         Case{DType::bf16, 2, 131, 264},
                                         Case{DType::bf16, 2, 9, 16, 4})),
    device_test_name<Case>);

TEST(ExciteReference, GradientsAreThoseOfTheForward) {
  const Shape shape = {2, 3, 4};
  const Values x = random_normal(DType::f32, shape, 1).values();
  const Values scale = random_normal(DType::f32, {2, 4}, 2).values();
  const Values d_y = random_normal(DType::f32, shape, 3).values();
  const auto at = [&](const Values& inputs, const Values& scales) {
    return ExciteReference<double>(shape, inputs, scales, d_y);
  };
  const ExciteReference<double> d = at(x, scale);
  expect_gradient([&](const Values& v) { return dot(d_y, at(v, scale).y); }, x, d.d_x, "d_x");
  expect_gradient([&](const Values& v) { return dot(d_y, at(x, v).y); }, scale, d.d_scale,
                  "d_scale");
}

}  // namespace
}  // namespace orchard::testing
