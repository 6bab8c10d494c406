// Depthwise 3x3 convolution on the CPU, channels last. 18 FLOPs and 2·e bytes per element of e bytes:
// 4.5 cycles a vector on two FMA ports, less than memory takes. Bound by memory, provided that an input
// is loaded, and in bf16 widened, three times and not nine: two vectors of channels walk along a row,
// where each column of three inputs adds to the three outputs around it, whose sums stay in registers
// with the weights. The gradient of the input is the same convolution of d_y with the weights turned
// by 180 degrees; that of the weight is the same walk with the nine sums in registers.
//
// Two vectors, because in a power of two of channels the pixels of a row compete for a few sets of the
// L1 cache: a walk that uses half a cache line, as one vector of bf16, finds it gone for the other half.
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

// Vectors that walk together: nine weights and their inputs fit the registers.
constexpr int walkers = few_registers ? 1 : 2;

// Stands for the pixels outside the picture.
template <class T>
alignas(64) constexpr T zero_pixel[walkers * HWY_MAX_BYTES / sizeof(float)] = {};

struct Extent {
  std::int64_t images, height, width, channels;
  explicit Extent(const Shape& s) : images(s[0]), height(s[1]), width(s[2]), channels(s[3]) {}
  std::int64_t rows() const { return images * height; }
  std::int64_t row_size() const { return width * channels; }
};

// Some channels of one row of pixels after the other.
template <class T>
struct Walk {
  T* at;
  std::int64_t step;

  void next() { at += step; }
  // What the walk after the next, or (bf16) the one after that, reads or writes here: pixels are too far
  // apart for the hardware to foresee it.
  template <int vectors>
  HWY_INLINE void prefetch() const {
    const std::int64_t bytes = vectors * lanes() * static_cast<std::int64_t>(sizeof(T));
    for (std::int64_t ahead = 128; ahead < 128 + bytes; ahead += 64)
      hwy::Prefetch(reinterpret_cast<const char*>(at) + ahead);
  }
};

// The row `down` rows below row `row` of all images, from `channel` on; zeros outside the image.
template <class T>
Walk<const T> walk(const T* x, const Extent& extent, std::int64_t row, std::int64_t down,
                   std::int64_t channel) {
  const std::int64_t i = row % extent.height + down;
  if (i < 0 || i >= extent.height) return {zero_pixel<T>, 0};
  return {x + (row + down) * extent.row_size() + channel, extent.channels};
}

// Calls body.operator()<vectors>(c, n) for groups of vectors that cover `channels`, `n` channels in
// each vector, fewer than there are lanes only in the last.
template <class Body>
HWY_INLINE void for_each_walk(std::int64_t channels, const Body& body) {
  std::int64_t c = 0;
  for (; c + walkers * lanes() <= channels; c += walkers * lanes())
    body.template operator()<walkers>(c, lanes());
  for (; c < channels; c += lanes())
    body.template operator()<1>(c, std::min(lanes(), channels - c));
}

// A row of y; `in` are the rows of x above, at and below it, `weights` [vectors, 9, lanes].
template <int vectors, class T>
HWY_INLINE void convolve_row(Walk<const T> (&in)[3], const float* weights, Walk<T> out,
                             std::int64_t width, std::int64_t n) {
  const std::int64_t step = lanes();
  Vector w[vectors][taps], left[vectors], here[vectors];
  for (int v = 0; v < vectors; ++v) {
    for (int tap = 0; tap < taps; ++tap) w[v][tap] = load(weights + (v * taps + tap) * step);
    left[v] = here[v] = zero();
  }
  // Before each step, left and here are the sums of the output to the left of the column and at it.
  for (std::int64_t j = 0; j < width; ++j) {
    in[2].template prefetch<vectors>();
    for (int v = 0; v < vectors; ++v) {
      Vector right = zero();
      Vector x[3];
      for (int r = 0; r < 3; ++r) x[r] = load(in[r].at + v * step, n);
      for (int r = 0; r < 3; ++r) {
        left[v] = hn::MulAdd(w[v][3 * r + 2], x[r], left[v]);
        here[v] = hn::MulAdd(w[v][3 * r + 1], x[r], here[v]);
        right = hn::MulAdd(w[v][3 * r], x[r], right);
      }
      if (j > 0) store(left[v], out.at + v * step, n);
      left[v] = here[v];
      here[v] = right;
    }
    for (Walk<const T>& row : in) row.next();
    if (j > 0) {
      out.template prefetch<vectors>();
      out.next();
    }
  }
  for (int v = 0; v < vectors; ++v) store(left[v], out.at + v * step, n);
}

// Channels rounded up to whole vectors.
inline std::int64_t padded(std::int64_t channels) {
  return (channels + lanes() - 1) / lanes() * lanes();
}

enum class Turn { none, by_180_degrees };

// weight [channels, 3, 3] in fp32 as [vectors, 9, lanes], in the workspace. What pads the last vector
// meets outputs that are not stored.
template <class T>
const float* vectors_of_weights(Stream& stream, const ConstTensor& weight, Turn turn) {
  const std::int64_t channels = weight.dim(0), step = lanes();
  const T* const in = weight.data<T>();
  auto* const out = reinterpret_cast<float*>(
      stream.workspace(static_cast<std::size_t>(taps * padded(channels)) * sizeof(float)));
  std::fill_n(out, taps * padded(channels), 0.0f);
  for (std::int64_t c = 0; c < channels; ++c) {
    for (int tap = 0; tap < taps; ++tap) {
      const T value = in[c * taps + (turn == Turn::none ? tap : taps - 1 - tap)];
      float& to = out[(c / step * taps + tap) * step + c % step];
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
void convolve(Stream& stream, const ConstTensor& x, const ConstTensor& weight, Turn turn,
              const Tensor& y) {
  const Extent extent(x.shape());
  if (x.numel() == 0) return;
  const T* const inputs = x.data<T>();
  const float* const weights = vectors_of_weights<T>(stream, weight, turn);
  parallel_for(extent.rows(), 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      T* const outputs = y.data<T>() + row * extent.row_size();
      for_each_walk(extent.channels, [&]<int vectors>(std::int64_t c, std::int64_t n) HWY_ATTR {
        Walk<const T> in[3] = {walk(inputs, extent, row, -1, c), walk(inputs, extent, row, 0, c),
                               walk(inputs, extent, row, 1, c)};
        convolve_row<vectors>(in, weights + c * taps, Walk<T>{outputs + c, extent.channels},
                              extent.width, n);
      });
    }
  });
}

// Adds the share of a row of outputs to the gradients of the weights, `sums` [vectors, 9, lanes].
template <int vectors, class T>
HWY_INLINE void correlate_row(Walk<const T> (&in)[3], Walk<const T> d_y, float* sums,
                              std::int64_t width, std::int64_t n) {
  const std::int64_t step = lanes();
  // d_y to the left of the column, at it and to the right.
  Vector sum[vectors][taps], left[vectors], here[vectors], right[vectors];
  for (int v = 0; v < vectors; ++v) {
    for (int tap = 0; tap < taps; ++tap) sum[v][tap] = load(sums + (v * taps + tap) * step);
    left[v] = right[v] = zero();
    here[v] = load(d_y.at + v * step, n);
  }
  for (std::int64_t j = 0; j < width; ++j) {
    in[2].template prefetch<vectors>();
    d_y.next();
    if (j + 1 < width) d_y.template prefetch<vectors>();
    for (int v = 0; v < vectors; ++v) {
      right[v] = j + 1 < width ? load(d_y.at + v * step, n) : zero();
      for (int r = 0; r < 3; ++r) {
        const Vector x = load(in[r].at + v * step, n);
        sum[v][3 * r] = hn::MulAdd(right[v], x, sum[v][3 * r]);
        sum[v][3 * r + 1] = hn::MulAdd(here[v], x, sum[v][3 * r + 1]);
        sum[v][3 * r + 2] = hn::MulAdd(left[v], x, sum[v][3 * r + 2]);
      }
      left[v] = here[v];
      here[v] = right[v];
    }
    for (Walk<const T>& row : in) row.next();
  }
  for (int v = 0; v < vectors; ++v) {
    for (int tap = 0; tap < taps; ++tap) store(sum[v][tap], sums + (v * taps + tap) * step);
  }
}

// Adds gradients [vectors, 9, lanes] to d_weight [channels, 3, 3].
void add_to_weights(const float* sums, const Tensor& d_weight) {
  const std::int64_t step = lanes();
  float* const to = d_weight.data<float>();
  for (std::int64_t c = 0; c < d_weight.dim(0); ++c) {
    for (int tap = 0; tap < taps; ++tap)
      to[c * taps + tap] += sums[(c / step * taps + tap) * step + c % step];
  }
}

template <class T>
void correlate(Stream& stream, const DepthwiseConv3x3BackwardWeight& op) {
  const Extent extent(op.x.shape());
  if (op.x.numel() == 0) return;
  const T* const x = op.x.data<T>();
  const T* const d_y = op.d_y.data<T>();
  const std::int64_t size = taps * padded(extent.channels);
  // So many rows take several times as long as adding up their nine sums.
  constexpr std::int64_t least_rows = 4;
  PartialSums shares(extent.rows(), size, least_rows);
  std::byte* const memory =
      stream.workspace(shares.size_bytes() + static_cast<std::size_t>(size) * sizeof(float));
  shares.collect(memory, [&](std::int64_t begin, std::int64_t end, float* share) {
    for (std::int64_t row = begin; row < end; ++row) {
      for_each_walk(extent.channels, [&]<int vectors>(std::int64_t c, std::int64_t n) HWY_ATTR {
        Walk<const T> in[3] = {walk(x, extent, row, -1, c), walk(x, extent, row, 0, c),
                               walk(x, extent, row, 1, c)};
        correlate_row<vectors>(in, walk(d_y, extent, row, 0, c), share + c * taps, extent.width, n);
      });
    }
  });
  auto* const sums = reinterpret_cast<float*>(memory + shares.size_bytes());
  std::fill_n(sums, size, 0.0f);
  shares.add_to(sums, 0, size);
  add_to_weights(sums, op.d_weight);
}

void depthwise_forward(Stream& stream, const DepthwiseConv3x3Forward& op) {
  const auto convolution = op.x.dtype() == DType::f32 ? convolve<float> : convolve<bf16>;
  convolution(stream, op.x, op.weight, Turn::none, op.y);
}

void depthwise_backward_input(Stream& stream, const DepthwiseConv3x3BackwardInput& op) {
  const auto convolution = op.d_y.dtype() == DType::f32 ? convolve<float> : convolve<bf16>;
  convolution(stream, op.d_y, op.weight, Turn::by_180_degrees, op.d_x);
}

void depthwise_backward_weight(Stream& stream, const DepthwiseConv3x3BackwardWeight& op) {
  op.x.dtype() == DType::f32 ? correlate<float>(stream, op) : correlate<bf16>(stream, op);
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
