// Depthwise 3x3 convolution on the CPU, channels last: a vector is a run of channels, and two
// neighbouring pixels of a row are computed together, so that of their 18 inputs 12 are loaded and
// every weight serves twice. 18 FLOPs and 2·e bytes per element of e bytes: 4.5 cycles a vector on
// two FMA ports, about the pace of memory. The gradient of the input is the same convolution of d_y
// with the weights turned by 180 degrees.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/convolution/depthwise_cpu.cpp"
#include "hwy/foreach_target.h"  // compiles this file once per instruction set
#include "hwy/highway.h"
//
#include <hwy/cache_control.h>

#include <algorithm>
#include <type_traits>

#include "kernels/convolution/convolution.h"
#include "kernels/convolution/convolution_cpu.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/reduction.h"
#include "kernels/cpu/simd-inl.h"
#include "kernels/device/device.h"

HWY_BEFORE_NAMESPACE();
namespace orchard::cpu::HWY_NAMESPACE {

constexpr int taps = 9;
// Channels per pass. What lies outside the picture is read from one block of so many zeros, and the
// nine weights of a chunk lie together, [9, chunk]: rows of 1024 floats apart, they would fall into
// the cache sets that the pixels' channels need.
constexpr std::int64_t channel_chunk = 256;
template <class T>
alignas(64) constexpr T zero_pixel[channel_chunk] = {};

struct Extent {
  std::int64_t images, height, width, channels;
  explicit Extent(const Shape& s) : images(s[0]), height(s[1]), width(s[2]), channels(s[3]) {}
  std::int64_t pixels() const { return images * height * width; }
};

// The 3x4 input pixels around the outputs (image, i, j) and (image, i, j + 1).
template <class T>
class Window {
 public:
  Window(const T* x, const Extent& extent, std::int64_t pixel) {
    const std::int64_t i = pixel / extent.width % extent.height, j = pixel % extent.width;
    for (int r = 0; r < 3; ++r) {
      for (int s = 0; s < 4; ++s) {
        const bool inside =
            i + r >= 1 && i + r <= extent.height && j + s >= 1 && j + s <= extent.width;
        pixels_[r][s] =
            inside ? x + (pixel + (r - 1) * extent.width + s - 1) * extent.channels : nullptr;
      }
    }
  }

  // The pixel of row r, column s from `channel` on.
  const T* at(int r, int s, std::int64_t channel) const {
    return pixels_[r][s] ? pixels_[r][s] + channel : zero_pixel<T>;
  }

 private:
  const T* pixels_[3][4];
};

// How many of the pixels `pixel` and `pixel + 1` lie before `end` and in one row.
inline std::int64_t pair_length(const Extent& extent, std::int64_t pixel, std::int64_t end) {
  return pixel + 1 < end && (pixel + 1) % extent.width != 0 ? 2 : 1;
}

// Output pixels [begin, end) of the convolution of x with `weights`, chunk by chunk.
template <class T>
void convolve(const T* x, const float* weights, T* y, const Extent& extent, std::int64_t begin,
              std::int64_t end) {
  const std::int64_t channels = extent.channels;
  for (std::int64_t pixel = begin; pixel < end;) {
    const Window<T> window(x, extent, pixel);
    const std::int64_t pair = pair_length(extent, pixel, end);
    for (std::int64_t c = 0; c < channels; c += channel_chunk) {
      const std::int64_t chunk = std::min(channel_chunk, channels - c);
      const T* in[3][4];
      for (int r = 0; r < 3; ++r) {
        for (int s = 0; s < 4; ++s) in[r][s] = window.at(r, s, c);
      }
      T* const left = y + pixel * channels + c;
      // The next pair reads two pixels first, columns 3 and 4 to the right of `pixel` and a row down, and
      // writes two: so many streams at once are more than the hardware prefetches.
      const T* const ahead = x + (pixel + extent.width + 3) * channels + c;
      for_each_vector(chunk, [&](std::int64_t i, std::int64_t n) HWY_ATTR {
        hwy::Prefetch(ahead + i);
        hwy::Prefetch(ahead + channels + i);
        hwy::Prefetch(left + 2 * channels + i);
        hwy::Prefetch(left + 3 * channels + i);
        Vector sum0 = zero(), sum1 = zero();
        for (int r = 0; r < 3; ++r) {
          const float* const w = weights + c * taps + 3 * r * chunk + i;
          const Vector w0 = load(w, n), w1 = load(w + chunk, n), w2 = load(w + 2 * chunk, n);
          const Vector x1 = load(in[r][1] + i, n), x2 = load(in[r][2] + i, n);
          sum0 = hn::MulAdd(w0, load(in[r][0] + i, n), sum0);
          sum1 = hn::MulAdd(w0, x1, sum1);
          sum0 = hn::MulAdd(w1, x1, sum0);
          sum1 = hn::MulAdd(w1, x2, sum1);
          sum0 = hn::MulAdd(w2, x2, sum0);
          sum1 = hn::MulAdd(w2, load(in[r][3] + i, n), sum1);
        }
        store(sum0, left + i, n);
        if (pair == 2) store(sum1, left + channels + i, n);
      });
    }
    pixel += pair;
  }
}

enum class Turn { none, by_180_degrees };

// weight [channels, 3, 3] in fp32, chunk by chunk, in the workspace.
template <class T>
const float* chunked_weights(Stream& stream, const ConstTensor& weight, Turn turn) {
  const std::int64_t channels = weight.dim(0);
  const T* const in = weight.data<T>();
  auto* const out = reinterpret_cast<float*>(
      stream.workspace(static_cast<std::size_t>(taps * channels) * sizeof(float)));
  for (std::int64_t c = 0; c < channels; ++c) {
    const std::int64_t first = c / channel_chunk * channel_chunk;
    const std::int64_t chunk = std::min(channel_chunk, channels - first);
    for (int tap = 0; tap < taps; ++tap) {
      const T value = in[c * taps + (turn == Turn::none ? tap : taps - 1 - tap)];
      float& to = out[first * taps + tap * chunk + c - first];
      if constexpr (std::is_same_v<T, bf16>) {
        to = to_float(value);
      } else {
        to = value;
      }
    }
  }
  return out;
}

template <class T>
void convolve_all(Stream& stream, const ConstTensor& x, const ConstTensor& weight, Turn turn,
                  const Tensor& y) {
  const Extent extent(x.shape());
  const float* const weights = chunked_weights<T>(stream, weight, turn);
  parallel_for(extent.pixels(), 16, [&](std::int64_t begin, std::int64_t end) {
    convolve(x.data<T>(), weights, y.data<T>(), extent, begin, end);
  });
}

// In each chunk of channels the 9 gradients lie apart while they add up, [9, chunk]; this brings
// them into the order of the weight, [chunk, 9].
void interleave_taps(float* partial, std::int64_t channels) {
  float chunk[taps * channel_chunk];
  for (std::int64_t c = 0; c < channels; c += channel_chunk) {
    const std::int64_t n = std::min(channel_chunk, channels - c);
    float* const at = partial + c * taps;
    std::copy_n(at, taps * n, chunk);
    for (std::int64_t i = 0; i < n; ++i) {
      for (int tap = 0; tap < taps; ++tap) at[i * taps + tap] = chunk[tap * n + i];
    }
  }
}

// The share of output pixels [begin, end) in d_weight.
template <class T>
void correlate(const DepthwiseConv3x3BackwardWeight& op, std::int64_t begin, std::int64_t end,
               float* partial) {
  const Extent extent(op.x.shape());
  const std::int64_t channels = extent.channels;
  for (std::int64_t pixel = begin; pixel < end;) {
    const Window<T> window(op.x.data<T>(), extent, pixel);
    const std::int64_t pair = pair_length(extent, pixel, end);
    for (std::int64_t c = 0; c < channels; c += channel_chunk) {
      const std::int64_t chunk = std::min(channel_chunk, channels - c);
      const T* const left = op.d_y.data<T>() + pixel * channels + c;
      const T* const right = pair == 2 ? left + channels : zero_pixel<T>;
      for (int r = 0; r < 3; ++r) {
        const T* in[4];
        for (int s = 0; s < 4; ++s) in[s] = window.at(r, s, c);
        float* const sums = partial + c * taps + 3 * r * chunk;
        for_each_vector(chunk, [&](std::int64_t i, std::int64_t n) HWY_ATTR {
          const Vector d0 = load(left + i, n), d1 = load(right + i, n);
          const Vector x0 = load(in[0] + i, n), x1 = load(in[1] + i, n);
          const Vector x2 = load(in[2] + i, n), x3 = load(in[3] + i, n);
          const auto add = [&](float* at, Vector a, Vector b) HWY_ATTR {
            store(hn::MulAdd(d1, b, hn::MulAdd(d0, a, load(at, n))), at, n);
          };
          add(sums + i, x0, x1);
          add(sums + chunk + i, x1, x2);
          add(sums + 2 * chunk + i, x2, x3);
        });
      }
    }
    pixel += pair;
  }
  interleave_taps(partial, channels);
}

void depthwise_forward(Stream& stream, const DepthwiseConv3x3Forward& op) {
  const auto convolution = op.x.dtype() == DType::f32 ? convolve_all<float> : convolve_all<bf16>;
  convolution(stream, op.x, op.weight, Turn::none, op.y);
}

void depthwise_backward_input(Stream& stream, const DepthwiseConv3x3BackwardInput& op) {
  const auto convolution = op.d_y.dtype() == DType::f32 ? convolve_all<float> : convolve_all<bf16>;
  convolution(stream, op.d_y, op.weight, Turn::by_180_degrees, op.d_x);
}

void depthwise_backward_weight(Stream& stream, const DepthwiseConv3x3BackwardWeight& op) {
  const auto share_of = op.x.dtype() == DType::f32 ? correlate<float> : correlate<bf16>;
  sum_over_rows(stream, Extent(op.x.shape()).pixels(), op.d_weight,
                [&](std::int64_t begin, std::int64_t end, float* partial) {
                  if (partial) share_of(op, begin, end, partial);
                });
}

}  // namespace orchard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace orchard::cpu {

HWY_EXPORT(depthwise_forward);
HWY_EXPORT(depthwise_backward_input);
HWY_EXPORT(depthwise_backward_weight);

void register_depthwise_convolution(OperationTable& table) {
  table.add<DepthwiseConv3x3Forward>([](Stream& s, const DepthwiseConv3x3Forward& op) {
    HWY_DYNAMIC_DISPATCH(depthwise_forward)(s, op);
  });
  table.add<DepthwiseConv3x3BackwardInput>([](Stream& s, const DepthwiseConv3x3BackwardInput& op) {
    HWY_DYNAMIC_DISPATCH(depthwise_backward_input)(s, op);
  });
  table.add<DepthwiseConv3x3BackwardWeight>(
      [](Stream& s, const DepthwiseConv3x3BackwardWeight& op) {
        HWY_DYNAMIC_DISPATCH(depthwise_backward_weight)(s, op);
      });
}

}  // namespace orchard::cpu
#endif  // HWY_ONCE
