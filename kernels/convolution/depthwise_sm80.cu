// Depthwise 3x3 convolution on GPUs, from sm_80 on, channels last; the gradient of the input is the
// same convolution of d_y with the weights turned by 180 degrees.
//
// Bytes: 2·e per element of e bytes. FLOPs: 18. Bound: HBM bandwidth, at 4.5 FLOP per byte in bf16,
// as long as the caches serve the neighbours: an element is asked for 3.75 times.
//
// A thread holds the nine weights of its channels in registers and walks along eight pixels of a
// row. It keeps three sums, not nine inputs: each column of the picture that it loads adds to the
// outputs left of it, on it, and right of it.
#include "kernels/convolution/convolution.h"
#include "kernels/convolution/convolution_gpu.h"
#include "kernels/convolution/pixels.h"
#include "kernels/core/visit.h"
#include "kernels/device/device.h"
#include "kernels/gpu/grid.h"

namespace orchard::GPU_NAMESPACE {
namespace {

constexpr int block_threads = 128;
constexpr int strip = 8;  // outputs of a thread

enum class Turn : std::uint8_t { none, by_180_degrees };

template <class T>
struct Convolution {
  const T* x;
  const T* weight;  // [channels, 3, 3]
  T* y;
  Picture picture;
  Turn turn;
};

template <int n>
struct Weights {
  Values<n> tap[taps];
};

// The weights of n channels lie together, nine by nine.
template <int n, class T>
__device__ Weights<n> load_weights(const T* weight, Turn turn) {
  Weights<n> out;
  if constexpr (n == 1) {
#pragma unroll
    for (int tap = 0; tap < taps; ++tap) out.tap[tap] = load_values<1>(weight + tap);
  } else {
#pragma unroll
    for (int vector = 0; vector < taps; ++vector) {
      const Values<n> values = load_values<n>(weight + vector * n);
#pragma unroll
      for (int i = 0; i < n; ++i) {
        out.tap[(vector * n + i) % taps][(vector * n + i) / taps] = values[i];
      }
    }
  }
  if (turn == Turn::none) return out;
  Weights<n> turned;
#pragma unroll
  for (int tap = 0; tap < taps; ++tap) turned.tap[tap] = out.tap[taps - 1 - tap];
  return turned;
}

template <class T, int n>
__global__ void __launch_bounds__(block_threads) convolve(Convolution<T> op) {
  const Picture& picture = op.picture;
  const std::int64_t groups = picture.channels / n;  // of channels
  const std::int64_t strips = (picture.width + strip - 1) / strip;
  const std::int64_t thread =
      static_cast<std::int64_t>(blockIdx.x) * block_threads + static_cast<int>(threadIdx.x);
  const std::int64_t channel = thread % groups * n, row = thread / groups / strips;
  if (row >= picture.images * picture.height) return;
  const int begin = static_cast<int>(thread / groups % strips) * strip;
  const int end = begin + strip < picture.width ? begin + strip : picture.width;
  const int i = static_cast<int>(row % picture.height);
  const std::int64_t image_at = (row - i) * picture.width * picture.channels + channel;
  const T* const x = op.x + image_at;
  T* const y = op.y + image_at + static_cast<std::int64_t>(i) * picture.width * picture.channels;
  const Weights<n> weights = load_weights<n>(op.weight + channel * taps, op.turn);

  Values<n> left{}, middle{};  // of the outputs j - 1 and j, as far as columns before j go
  Column<T, n> next = load_column<n>(x, picture, i, begin - 1);
  for (int j = begin - 1; j <= end; ++j) {
    const Column<T, n> column = next;
    if (j < end) next = load_column<n>(x, picture, i, j + 1);
    Values<n> right{};
#pragma unroll
    for (int r = 0; r < 3; ++r) {
      const Values<n> pixel = values_of(column.row[r]);
#pragma unroll
      for (int c = 0; c < n; ++c) {
        left[c] = fmaf(weights.tap[3 * r + 2][c], pixel[c], left[c]);
        middle[c] = fmaf(weights.tap[3 * r + 1][c], pixel[c], middle[c]);
        right[c] = fmaf(weights.tap[3 * r][c], pixel[c], right[c]);
      }
    }
    if (j > begin) store_values(y + (j - 1) * picture.channels, left);
    left = middle;
    middle = right;
  }
}

template <class T>
void convolve(Stream& stream, const char* name, const Convolution<T>& op) {
  const Picture& picture = op.picture;
  const std::int64_t strips = picture.images * picture.height * ceil_div(picture.width, strip);
  if (strips * picture.channels == 0) return;
  visit_piece<T>(picture.channels, {op.x, op.weight, op.y}, [&](auto n) {
    launch(stream,
           {.kernel = name,
            .grid = {blocks_for(name, strips * (picture.channels / n), block_threads)},
            .block = {block_threads}},
           convolve<T, n>, op);
  });
}

}  // namespace

void run_kernel(Stream& stream, const DepthwiseConv3x3Forward& op) {
  visit_float(op.x.dtype(), [&]<class T>(T) {
    convolve<T>(stream, "depthwise_conv_3x3",
                {.x = op.x.data<T>(),
                 .weight = op.weight.data<T>(),
                 .y = op.y.data<T>(),
                 .picture = Picture(op.x.shape()),
                 .turn = Turn::none});
  });
}

void run_kernel(Stream& stream, const DepthwiseConv3x3BackwardInput& op) {
  visit_float(op.d_y.dtype(), [&]<class T>(T) {
    convolve<T>(stream, "depthwise_conv_3x3_backward_input",
                {.x = op.d_y.data<T>(),
                 .weight = op.weight.data<T>(),
                 .y = op.d_x.data<T>(),
                 .picture = Picture(op.d_y.shape()),
                 .turn = Turn::by_180_degrees});
  });
}

}  // namespace orchard::GPU_NAMESPACE
