// Antialiased bicubic resize on the CPU: a horizontal pass into the workspace, f32 [in_height,
// width, 3], and a vertical pass onto the canvas. With s the larger of 1 and the shrink factor, a
// pass costs 4·s multiply-adds per value: bound by arithmetic. The vertical pass runs along rows;
// in the horizontal one a vector of four holds the channels of one pixel.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/image/resize_cpu.cpp"
#include "hwy/foreach_target.h"  // compiles this file once per instruction set
#include "hwy/highway.h"
//
#include <algorithm>
#include <cmath>

#include "kernels/cpu/parallel.h"
#include "kernels/cpu/simd-inl.h"
#include "kernels/device/device.h"
#include "kernels/device/scratch.h"
#include "kernels/image/image.h"
#include "kernels/image/image_cpu.h"
#include "kernels/image/resize_filter_cpu.h"

HWY_BEFORE_NAMESPACE();
namespace orchard::cpu::HWY_NAMESPACE {

// Rows [begin, end) of x, `width` pixels of three values each on output.
void resize_across(const ResizeBicubic& op, const ResizeFilter& filter, float* out,
                   std::int64_t begin, std::int64_t end) {
  const std::int64_t in_width = op.x.dim(1);
  for (std::int64_t row = begin; row < end; ++row) {
    const std::uint8_t* const x = op.x.data<std::uint8_t>() + row * in_width * 3;
    for (std::int64_t j = 0; j < op.width; ++j) {
      const float* const weights = filter.weights_of(j);
      const std::uint8_t* pixel = x + filter.first[j] * 3;
      float red = 0, green = 0, blue = 0;
      for (std::int32_t tap = 0; tap < filter.count[j]; ++tap, pixel += 3) {
        red += weights[tap] * pixel[0];
        green += weights[tap] * pixel[1];
        blue += weights[tap] * pixel[2];
      }
      float* const to = out + (row * op.width + j) * 3;
      to[0] = red, to[1] = green, to[2] = blue;
    }
  }
}

// Rows [begin, end) of the canvas from the rows that the horizontal pass left.
void resize_down(const ResizeBicubic& op, const ResizeFilter& filter, const float* in,
                 std::int64_t begin, std::int64_t end) {
  const std::int64_t values = op.width * 3;
  for (std::int64_t row = begin; row < end; ++row) {
    const float* const weights = filter.weights_of(row);
    const float* const first = in + filter.first[row] * values;
    float* const y = op.y.data<float>() + row * op.y.dim(1) * 3;
    for_each_vector(values, [&](std::int64_t i, std::int64_t n) HWY_ATTR {
      Vector sum = zero();
      for (std::int32_t tap = 0; tap < filter.count[row]; ++tap) {
        sum = hn::MulAdd(set(weights[tap]), load(first + tap * values + i, n), sum);
      }
      store(hn::Min(hn::Max(sum, zero()), set(255.0f)), y + i, n);
    });
  }
}

}  // namespace orchard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace orchard::cpu {

HWY_EXPORT(resize_across);
HWY_EXPORT(resize_down);

namespace {

void resize_bicubic(Stream& stream, const ResizeBicubic& op) {
  const std::int64_t in_height = op.x.dim(0), in_width = op.x.dim(1);
  ScratchLayout layout;
  const auto across = ResizeFilter::reserve(layout, in_width, op.width);
  const auto down = ResizeFilter::reserve(layout, in_height, op.height);
  const auto rows = layout.add<float>(in_height * op.width * 3);
  std::byte* const scratch = stream.workspace(layout.bytes());
  const ResizeFilter horizontal(across, scratch), vertical(down, scratch);
  parallel_for(in_height, 8, [&](std::int64_t begin, std::int64_t end) {
    HWY_DYNAMIC_DISPATCH(resize_across)(op, horizontal, rows.in(scratch), begin, end);
  });
  parallel_for(op.height, 8, [&](std::int64_t begin, std::int64_t end) {
    HWY_DYNAMIC_DISPATCH(resize_down)(op, vertical, rows.in(scratch), begin, end);
  });
}

}  // namespace

void register_resize(OperationTable& table) {
  table.add<ResizeBicubic>(resize_bicubic);
}

}  // namespace orchard::cpu
#endif  // HWY_ONCE
