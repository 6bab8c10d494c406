// Picture preparation: resizes against Pillow, OpenCV and fp64 references, patches against the
// definition.
#include "kernels/image/image.h"

#include <variant>

#include "tests/goldens/resize_golden.h"
#include "tests/kernels/device_test.h"
#include "tests/kernels/image_reference.h"
#include "tests/message_of.h"

namespace orchard::testing {
namespace {

std::size_t at(std::int64_t i) {
  return static_cast<std::size_t>(i);
}

// The inputs of make_resize_golden.py.
Guarded golden_picture(std::int64_t height, std::int64_t width) {
  Guarded out(DType::u8, {height, width, 3});
  for (std::int64_t i = 0; i < out.size(); ++i) {
    const std::int64_t y = i / 3 / width, x = i / 3 % width, c = i % 3;
    const std::int64_t value = y * 7919 + x * 104729 + c * 1299709 + (y * x * 31) % 97 * 53;
    out.set(i, static_cast<double>(value % 251 + (x + y) % 2 * 4));
  }
  return out;
}

struct Resize {
  std::int64_t in_height, in_width, height, width;
  int shift = 0;  // bytes of the picture's address
};

// Values up to 255 times fp32 weights whose sizes sum to less than two, twice: 255·4 roundoffs of
// 6e-8 a tap, over at most 160 taps that add up like a random walk.
constexpr double level_bound = 1e-3;

using ResizeBicubicOnDevice = DeviceTest<std::monostate>;
TEST_P(ResizeBicubicOnDevice, MatchesPillow) {
  for (const golden::Picture& g : golden::pictures) {
    Guarded x = golden_picture(g.in_height, g.in_width), y(DType::f32, {g.height, g.width, 3});
    OnDevice x_d(stream(), x), y_d(stream(), y);
    run_and_download(
        stream(), ResizeBicubic{.x = x_d, .height = g.height, .width = g.width, .y = y_d}, {&y_d});
    for (std::int64_t i = 0; i < y.size(); ++i) {
      // The golden values are rounded to three digits.
      ASSERT_NEAR(y.at(i), g.values[i], level_bound + 5e-4)
          << g.in_height << "x" << g.in_width << " to " << g.height << "x" << g.width << " at "
          << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(AllDevices, ResizeBicubicOnDevice,
                         ::testing::Combine(every_device(), ::testing::Values(std::monostate{})),
                         device_test_name<std::monostate>);

using ResizeShapes = DeviceTest<Resize>;

TEST_P(ResizeShapes, MatchesReferenceAndLeavesTheRestOfTheCanvas) {
  const auto [in_height, in_width, height, width, shift] = parameter();
  Guarded x(DType::u8, {in_height, in_width, 3});
  std::mt19937 engine(5);
  for (std::int64_t i = 0; i < x.size(); ++i) x.set(i, engine() % 256);
  const std::int64_t canvas_width = width + 5;
  Guarded y(DType::f32, {height + 3, canvas_width, 3});
  const Guarded untouched = y;
  OnDevice x_d(stream(), x, shift), y_d(stream(), y);
  run_repeatedly(stream(), ResizeBicubic{.x = x_d, .height = height, .width = width, .y = y_d},
                 {&y_d});
  const std::vector<double> expected = resized<double>(x, height, width);
  for (std::int64_t i = 0; i < y.size(); ++i) {
    const std::int64_t row = i / 3 / canvas_width, col = i / 3 % canvas_width;
    if (row < height && col < width) {
      ASSERT_NEAR(y.at(i), expected[at((row * width + col) * 3 + i % 3)], level_bound) << i;
    } else {
      ASSERT_EQ(y.at(i), untouched.at(i)) << "row " << row << ", column " << col;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, ResizeShapes,
    ::testing::Combine(every_device(),
                       ::testing::Values(Resize{1, 1, 1, 1}, Resize{1, 1, 5, 4},
                                         Resize{2, 3, 31, 17}, Resize{29, 31, 7, 5},
                                         Resize{64, 48, 56, 42}, Resize{33, 20, 33, 41},
                                         Resize{97, 2, 3, 3}, Resize{7, 9, 5, 6, 3},
                                         Resize{5, 41, 3, 67, 30}, Resize{3, 1800, 2, 45})),
    device_test_name<Resize>);

TEST(ResizeBicubicErrors, RefuseACanvasThatIsTooSmall) {
  Guarded x(DType::u8, {4, 4, 3}), y(DType::f32, {4, 4, 3});
  const auto stream = cpu_device().make_stream();
  EXPECT_THROW(run(*stream, ResizeBicubic{.x = x, .height = 5, .width = 4, .y = y}), Error);
  EXPECT_THROW(run(*stream, ResizeBicubic{.x = x, .height = 0, .width = 4, .y = y}), Error);
}

using Patchify = DeviceTest<PatchCase>;

TEST_P(Patchify, OrdersTilesPatchesAndColours) {
  const auto [dtype, tile_rows, tile_cols, side, patch, height, width] = parameter();
  const std::int64_t canvas_width = tile_cols * side;
  Guarded x = random_normal(DType::f32, {tile_rows * side, canvas_width, 3}, 1, 60, 128);
  // What lies outside the picture is undefined, and must not be read into the patches.
  for (std::int64_t i = 0; i < x.size(); ++i) {
    if (i / 3 / canvas_width >= height || i / 3 % canvas_width >= width) x.set(i, std::nan(""));
  }
  Guarded patches(dtype, parameter().patches());
  OnDevice x_d(stream(), x), patches_d(stream(), patches);
  run_repeatedly(stream(),
                 NormalisePatchify{.x = x_d,
                                   .height = height,
                                   .width = width,
                                   .side = side,
                                   .patch = patch,
                                   .patches = patches_d},
                 {&patches_d});

  // CLIP's, which the operation takes unless told otherwise.
  const std::vector<double> expected = patchified<double>(
      parameter(), x, {0.48145466, 0.4578275, 0.40821073}, {0.26862954, 0.26130258, 0.27577711});
  // One rounding to the dtype, and fp32 roundings of value/255/std and mean/std, which are of size
  // 4 at most and cancel.
  const bool fp32 = dtype == DType::f32;
  expect_close(patches, expected, (fp32 ? 4 : 1.001) * unit_roundoff(dtype), "patches",
               fp32 ? 4 : 0);
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, Patchify,
    ::testing::Combine(every_device(),
                       ::testing::Values(PatchCase{DType::f32, 1, 1, 1, 1, 1, 1},
                                         PatchCase{DType::f32, 1, 1, 28, 14, 28, 28},
                                         PatchCase{DType::f32, 2, 3, 42, 14, 61, 100},
                                         PatchCase{DType::f32, 1, 2, 700, 7, 9, 1399},
                                         PatchCase{DType::f32, 2, 1, 6, 3, 0, 0},
                                         PatchCase{DType::f32, 1, 1, 512, 512, 5, 511},
                                         PatchCase{DType::f32, 1, 2, 80, 40, 79, 133},
                                         PatchCase{DType::bf16, 2, 2, 56, 14, 57, 112},
                                         PatchCase{DType::bf16, 1, 1, 15, 5, 13, 11})),
    device_test_name<PatchCase>);

TEST(PatchifyErrors, NameTheRule) {
  const auto stream = cpu_device().make_stream();
  const auto refusal = [&](std::int64_t side, std::int64_t patch) {
    const std::int64_t grid = std::max<std::int64_t>(1, side / patch);
    Guarded x(DType::f32, {side, side, 3}),
        patches(DType::f32, {1, grid * grid, 3 * patch * patch});
    return message_of([&] {
      run(*stream, NormalisePatchify{.x = x, .side = side, .patch = patch, .patches = patches});
    });
  };
  EXPECT_EQ(refusal(30, 14), "NormalisePatchify: side is a positive multiple of patch");
  EXPECT_EQ(refusal(513, 513), "NormalisePatchify: patch is at most 512");
}

// --- position tables ---

TEST(ResizePositions, MatchesOpenCv) {
  for (const golden::Table& g : golden::tables) {
    std::vector<float> table(at(g.rows * g.cols * g.width));
    for (std::size_t i = 0; i < table.size(); ++i) {
      table[i] = static_cast<float>(static_cast<double>((i * 37 + i * i * 11) % 101) / 50.0 - 1.0);
    }
    std::vector<float> resized_table(at(g.new_rows * g.new_cols * g.width));
    resize_positions(
        {table.data(), g.rows, g.cols, g.width, resized_table.data(), g.new_rows, g.new_cols});
    for (std::size_t i = 0; i < resized_table.size(); ++i) {
      // OpenCV computes its weights in fp32; the values are of size one.
      ASSERT_NEAR(resized_table[i], g.values[i], 4e-6)
          << g.rows << "x" << g.cols << " to " << g.new_rows << "x" << g.new_cols << " at " << i;
    }
  }
}

TEST(ResizePositions, MatchesTheDefinition) {
  constexpr int rows = 8, cols = 7, width = 5, new_rows = 16, new_cols = 5;
  const std::vector<double> table = random_normal(DType::f32, {rows, cols, width}, 2).values();
  const std::vector<float> input(table.begin(), table.end());
  std::vector<float> out(at(new_rows * new_cols * width));
  resize_positions({input.data(), rows, cols, width, out.data(), new_rows, new_cols});
  const auto clamped = [](int i, int n) { return std::clamp(i, 0, n - 1); };
  for (int i = 0; i < new_rows; ++i) {
    for (int j = 0; j < new_cols; ++j) {
      const double y = (i + 0.5) * rows / new_rows - 0.5, x = (j + 0.5) * cols / new_cols - 0.5;
      for (int c = 0; c < width; ++c) {
        double expected = 0;
        for (int r = -3; r < rows + 3; ++r) {
          for (int s = -3; s < cols + 3; ++s) {
            expected += keys(y - r, -0.75) * keys(x - s, -0.75) *
                        table[at((clamped(r, rows) * cols + clamped(s, cols)) * width + c)];
          }
        }
        // 16 terms of size one in fp32.
        ASSERT_NEAR(out[at((i * new_cols + j) * width + c)], expected, 4e-6);
      }
    }
  }
}

TEST(ResizePositions, KeepsATableOfTheSameGrid) {
  const std::vector<double> table = random_normal(DType::f32, {6, 6, 3}, 3).values();
  const std::vector<float> input(table.begin(), table.end());
  std::vector<float> out(input.size());
  resize_positions({input.data(), 6, 6, 3, out.data(), 6, 6});
  EXPECT_EQ(out, input);
}

}  // namespace
}  // namespace orchard::testing
