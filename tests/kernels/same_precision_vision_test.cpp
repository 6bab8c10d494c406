// Depthwise convolution, adaptive pooling, squeeze-and-excitation, the class token, resize and patches: their
// errors are at most twice those of the same formula in the same precision (same_precision.h). On a GPU of
// any architecture they are the kernels of sm_80.
#include "kernels/embedding/embedding.h"
#include "tests/kernels/convolution_reference.h"
#include "tests/kernels/device_test.h"
#include "tests/kernels/excite_reference.h"
#include "tests/kernels/image_reference.h"
#include "tests/kernels/same_precision.h"

namespace orchard::testing {
namespace {

constexpr DType f32 = DType::f32, b16 = DType::bf16;

using DepthwiseConv = DeviceTest<ConvCase>;

TEST_P(DepthwiseConv, ErrsAtMostTwiceAsMuchAsThePlainFormula) {
  const ConvCase& c = parameter();
  Guarded x = random_normal(c.dtype, c.shape(), 1), d_y = random_normal(c.dtype, c.shape(), 2);
  Guarded weight = random_normal(c.dtype, c.weight_shape(), 3);
  const Guarded before = random_normal(f32, c.weight_shape(), 4);
  Guarded y(c.dtype, c.shape()), d_x = y, d_weight = before;
  OnDevice x_d = on_device(x), d_y_d = on_device(d_y), weight_d = on_device(weight);
  OnDevice y_d = on_device(y), d_x_d = on_device(d_x), d_weight_d = on_device(d_weight);
  run_and_download(stream(), DepthwiseConv3x3Forward{.x = x_d, .weight = weight_d, .y = y_d},
                   {&y_d});
  run_and_download(stream(),
                   DepthwiseConv3x3BackwardInput{.d_y = d_y_d, .weight = weight_d, .d_x = d_x_d},
                   {&d_x_d});
  run_and_download(stream(),
                   DepthwiseConv3x3BackwardWeight{.x = x_d, .d_y = d_y_d, .d_weight = d_weight_d},
                   {&d_weight_d});
  expect_twice(y, convolved<double>(c, x, weight), convolved<float>(c, x, weight), "y");
  expect_twice(d_x, convolution_d_x<double>(c, d_y, weight), convolution_d_x<float>(c, d_y, weight),
               "d_x");
  // A row of nine taps is too short to tell what a sum that cancels is made of.
  const std::vector<double> exact = convolution_d_weight<double>(c, x, d_y, before);
  expect_twice(d_weight, exact, convolution_d_weight<float>(c, x, d_y, before),
               sizes_in_rows(exact, d_weight.size()), "d_weight");
}

// Vectors of channels and single ones; sums over few pixels and over many.
INSTANTIATE_TEST_SUITE_P(
    Shapes, DepthwiseConv,
    ::testing::Combine(every_device(),
                       ::testing::Values(ConvCase{f32, 2, 9, 13, 36}, ConvCase{f32, 3, 27, 27, 5},
                                         ConvCase{b16, 2, 9, 13, 64}, ConvCase{b16, 3, 27, 27, 7})),
    device_test_name<ConvCase>);

using AdaptivePool = DeviceTest<PoolCase>;

TEST_P(AdaptivePool, ErrsAtMostTwiceAsMuchAsThePlainFormula) {
  const PoolCase& c = parameter();
  Guarded x = random_normal(c.dtype, c.in_shape(), 1), y(c.dtype, c.out_shape());
  Guarded d_y = random_normal(c.dtype, c.out_shape(), 2), d_x(c.dtype, c.in_shape());
  Guarded d_extra = random_normal(c.dtype, c.in_shape(), 3);
  OnDevice x_d = on_device(x), y_d = on_device(y), d_y_d = on_device(d_y), d_x_d = on_device(d_x);
  OnDevice d_extra_d = on_device(d_extra);
  run_and_download(stream(), AdaptiveAveragePoolForward{.x = x_d, .y = y_d}, {&y_d});
  expect_twice(y, pooled<double>(c, x), pooled<float>(c, x), "y");
  for (Guarded* const extra : {static_cast<Guarded*>(nullptr), &d_extra}) {
    run_and_download(
        stream(),
        AdaptiveAveragePoolBackward{
            .d_y = d_y_d, .d_extra = extra ? d_extra_d.tensor() : Tensor(), .d_x = d_x_d},
        {&d_x_d});
    expect_twice(d_x, pool_d_x<double>(c, d_y, extra), pool_d_x<float>(c, d_y, extra),
                 extra ? "d_x with d_extra" : "d_x");
  }
}

// Small bins, which warps sum, and large ones, which blocks do; the connector's, and the global mean.
INSTANTIATE_TEST_SUITE_P(Shapes, AdaptivePool,
                         ::testing::Combine(every_device(),
                                            ::testing::Values(PoolCase{f32, 2, 27, 27, 12, 12, 20},
                                                              PoolCase{f32, 2, 27, 13, 1, 1, 36},
                                                              PoolCase{f32, 1, 5, 3, 3, 5, 4},
                                                              PoolCase{b16, 2, 27, 27, 12, 12, 33},
                                                              PoolCase{b16, 2, 27, 13, 1, 1, 64})),
                         device_test_name<PoolCase>);

struct PixelsCase {
  DType dtype;
  std::int64_t images, pixels, channels;

  Shape shape() const { return {images, pixels, channels}; }
};

using Excite = DeviceTest<PixelsCase>;

TEST_P(Excite, ErrsAtMostTwiceAsMuchAsThePlainFormula) {
  const PixelsCase& c = parameter();
  Guarded x = random_normal(c.dtype, c.shape(), 1), d_y = random_normal(c.dtype, c.shape(), 2);
  Guarded scale = random_normal(c.dtype, {c.images, c.channels}, 3, 2), d_scale = scale;
  Guarded y(c.dtype, c.shape()), d_x = y;
  OnDevice x_d = on_device(x), d_y_d = on_device(d_y), scale_d = on_device(scale);
  OnDevice y_d = on_device(y), d_x_d = on_device(d_x), d_scale_d = on_device(d_scale);
  run_and_download(stream(), ExciteForward{.x = x_d, .scale = scale_d, .y = y_d}, {&y_d});
  run_and_download(
      stream(),
      ExciteBackward{.x = x_d, .scale = scale_d, .d_y = d_y_d, .d_x = d_x_d, .d_scale = d_scale_d},
      {&d_x_d, &d_scale_d});
  const ExciteReference<double> exact(c.shape(), x.values(), scale.values(), d_y.values());
  const ExciteReference<float> plain(c.shape(), values_as<float>(x), values_as<float>(scale),
                                     values_as<float>(d_y));
  expect_twice(y, exact.y, plain.y, "y");
  expect_twice(d_x, exact.d_x, plain.d_x, "d_x");
  expect_twice(d_scale, exact.d_scale, plain.d_scale, "d_scale");
}

INSTANTIATE_TEST_SUITE_P(Shapes, Excite,
                         ::testing::Combine(every_device(),
                                            ::testing::Values(PixelsCase{f32, 2, 144, 64},
                                                              PixelsCase{f32, 1, 1100, 31},
                                                              PixelsCase{b16, 2, 144, 264},
                                                              PixelsCase{b16, 1, 1100, 5})),
                         device_test_name<PixelsCase>);

// Of images, whose rows all have a position.
template <class Real>
std::vector<Real> plus_positions(const Guarded& rows, const Guarded& positions) {
  std::vector<Real> y = values_as<Real>(rows);
  for (std::int64_t i = 0; i < rows.size(); ++i)
    y[static_cast<std::size_t>(i)] += static_cast<Real>(positions.at(i % positions.size()));
  return y;
}

// Added up over images, from `before` on: of each image its first elements, as many as `before` has.
template <class Real>
std::vector<Real> summed_over_images(const Guarded& d_y, const Guarded& before) {
  std::vector<Real> sums = values_as<Real>(before);
  const std::int64_t size = d_y.size() / d_y.shape()[0];
  for (std::int64_t i = 0; i < d_y.size(); ++i) {
    if (i % size >= before.size()) continue;
    sums[static_cast<std::size_t>(i % size)] += static_cast<Real>(d_y.at(i));
  }
  return sums;
}

using ClassToken = DeviceTest<PixelsCase>;

TEST_P(ClassToken, PositionsErrAtMostTwiceAsMuchAsPlainSums) {
  const auto [dtype, images, patches, width] = parameter();
  Guarded x = random_normal(dtype, {images, patches, width}, 1), dropped = x;
  Guarded token = random_normal(dtype, {width}, 2);
  Guarded rows(dtype, {images, patches + 1, width}), y = rows;  // x behind the token
  for (std::int64_t i = 0; i < rows.size(); ++i) {
    const std::int64_t image = i / width / (patches + 1), at = i % ((patches + 1) * width);
    rows.set(i, at < width ? token.at(at) : x.at((image * patches - 1) * width + at));
  }
  Guarded positions = random_normal(dtype, {patches + 1, width}, 3);
  Guarded of_patches = random_normal(dtype, {patches, width}, 4);
  OnDevice x_d = on_device(x), token_d = on_device(token), rows_d = on_device(rows);
  OnDevice positions_d = on_device(positions), of_patches_d = on_device(of_patches);
  OnDevice y_d = on_device(y), dropped_d = on_device(dropped);
  run_and_download(stream(),
                   PrependClassForward{
                       .patches = x_d, .class_token = token_d, .positions = positions_d, .y = y_d},
                   {&y_d});
  run_and_download(stream(),
                   DropClassForward{.x = rows_d, .positions = of_patches_d, .y = dropped_d},
                   {&dropped_d});
  expect_twice(y, plus_positions<double>(rows, positions), plus_positions<float>(rows, positions),
               "y with the token");
  expect_twice(dropped, plus_positions<double>(x, of_patches), plus_positions<float>(x, of_patches),
               "y without the token");
}

TEST_P(ClassToken, GradientsErrAtMostTwiceAsMuchAsPlainSums) {
  const auto [dtype, images, patches, width] = parameter();
  Guarded d_y = random_normal(dtype, {images, patches + 1, width}, 1);
  Guarded d_patches(dtype, {images, patches, width});
  const Guarded before = random_normal(f32, {patches + 1, width}, 2);
  const Guarded token_before = random_normal(f32, {width}, 3);
  Guarded d_positions = before, d_token = token_before;
  OnDevice d_y_d = on_device(d_y), d_patches_d = on_device(d_patches);
  OnDevice d_positions_d = on_device(d_positions), d_token_d = on_device(d_token);
  run_and_download(stream(),
                   PrependClassBackward{.d_y = d_y_d,
                                        .d_patches = d_patches_d,
                                        .d_class_token = d_token_d,
                                        .d_positions = d_positions_d},
                   {&d_token_d, &d_positions_d});
  expect_twice(d_token, summed_over_images<double>(d_y, token_before),
               summed_over_images<float>(d_y, token_before), "d_class_token");
  expect_twice(d_positions, summed_over_images<double>(d_y, before),
               summed_over_images<float>(d_y, before), "d_positions");
  // Without a class row, the sums are those of a picture's rows.
  Guarded d_x(dtype, {images, patches + 2, width});
  OnDevice d_x_d = on_device(d_x);
  d_positions = before;
  run_and_download(stream(),
                   DropClassBackward{.d_y = d_y_d, .d_x = d_x_d, .d_positions = d_positions_d},
                   {&d_positions_d});
  expect_twice(d_positions, summed_over_images<double>(d_y, before),
               summed_over_images<float>(d_y, before), "d_positions");
}

INSTANTIATE_TEST_SUITE_P(Shapes, ClassToken,
                         ::testing::Combine(every_device(),
                                            ::testing::Values(PixelsCase{f32, 65, 5, 40},
                                                              PixelsCase{b16, 65, 3, 33})),
                         device_test_name<PixelsCase>);

struct ResizeCase {
  std::int64_t in_height, in_width, height, width;
};

using Resize = DeviceTest<ResizeCase>;

TEST_P(Resize, ErrsAtMostTwiceAsMuchAsThePlainFormula) {
  const auto [in_height, in_width, height, width] = parameter();
  Guarded x(DType::u8, {in_height, in_width, 3}), y(f32, {height, width, 3});
  std::mt19937 engine(5);
  for (std::int64_t i = 0; i < x.size(); ++i) x.set(i, engine() % 256);
  OnDevice x_d = on_device(x), y_d = on_device(y);
  run_and_download(stream(), ResizeBicubic{.x = x_d, .height = height, .width = width, .y = y_d},
                   {&y_d});
  const std::vector<double> exact = resized<double>(x, height, width);
  // Of a row of pixels, whose three values may all be near zero.
  expect_twice(y, exact, resized<float>(x, height, width), sizes_in_rows(exact, 3 * width), "y");
}

INSTANTIATE_TEST_SUITE_P(Shapes, Resize,
                         ::testing::Combine(every_device(),
                                            ::testing::Values(ResizeCase{97, 61, 14, 9},
                                                              ResizeCase{24, 17, 56, 42})),
                         device_test_name<ResizeCase>);

template <class Real>
std::array<Real, 3> colours_as(const std::array<float, 3>& colours) {
  return {colours[0], colours[1], colours[2]};
}

using Patchify = DeviceTest<PatchCase>;

TEST_P(Patchify, ErrsAtMostTwiceAsMuchAsThePlainFormula) {
  const PatchCase& c = parameter();
  Guarded x = random_normal(f32, {c.tile_rows * c.side, c.tile_cols * c.side, 3}, 1, 60, 128);
  Guarded patches(c.dtype, c.patches());
  OnDevice x_d = on_device(x), patches_d = on_device(patches);
  const NormalisePatchify op{.x = x_d,
                             .height = c.height,
                             .width = c.width,
                             .side = c.side,
                             .patch = c.patch,
                             .patches = patches_d};
  run_and_download(stream(), op, {&patches_d});
  const auto patches_as = [&]<class Real>(Real) {
    return patchified<Real>(c, x, colours_as<Real>(op.mean), colours_as<Real>(op.std));
  };
  expect_twice(patches, patches_as(double{}), patches_as(float{}), "patches");
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, Patchify,
    ::testing::Combine(every_device(), ::testing::Values(PatchCase{f32, 1, 2, 42, 14, 40, 81},
                                                         PatchCase{b16, 1, 2, 42, 14, 40, 81})),
    device_test_name<PatchCase>);

}  // namespace
}  // namespace orchard::testing
