// Depthwise 3x3 convolution on GPUs, from sm_80 on, channels last; the gradient of the input is the
// same convolution of d_y with the weights turned by 180 degrees.
//
// Bytes: 2·e per element of e bytes. FLOPs: 18. Bound: HBM bandwidth, at 4.5 FLOP per byte in bf16,
// as long as the caches serve the neighbours: an element is asked for 3.7 times.
//
// A thread holds the nine weights of its four channels in registers and walks along a strip of a row. It
// keeps three sums, not nine inputs: each column of the picture that it loads adds to the outputs left of
// it, on it, and right of it. Four columns are in flight at once, some 50 KB on an SM. The warps of a block
// have neighbouring rows, so that L1 serves two of the three.
#include "kernels/convolution/convolution.h"
#include "kernels/convolution/convolution_gpu.h"
#include "kernels/convolution/pixels.h"
#include "kernels/core/visit.h"
#include "kernels/device/stream.h"
#include "kernels/gpu/grid.h"

namespace orchard::GPU_NAMESPACE {
namespace {

constexpr int block_warps = 8;  // neighbouring rows
constexpr int in_flight = 4;    // columns

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

// The weights of a block's channels, as they lie in memory.
template <class T, int n>
struct WeightStorage {
  alignas(16) T value[32 * n * taps];
};

// Brings them there in full sectors: a lane's own lie 9·n elements apart from its neighbour's. Ends with a
// barrier.
template <class T, int n>
__device__ void fetch_weights(const Convolution<T>& op, WeightStorage<T, n>& shared) {
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * 32 * n * taps;
  const std::int64_t left = op.picture.channels * taps - first;
  for (int i = static_cast<int>(threadIdx.x) * n; i < 32 * n * taps; i += 32 * block_warps * n) {
    if (i >= left) break;
    const Piece<T, n> piece = load_piece<n>(op.weight + first + i);
    store_shared(reinterpret_cast<decltype(Piece<T, n>::word)*>(shared.value + i), piece.word);
  }
  __syncthreads();
}

// The weights of n channels lie together, nine by nine.
template <int n, class T>
__device__ Weights<n> load_weights(const T* shared, Turn turn) {
  Weights<n> out;
#pragma unroll
  for (int k = 0; k < taps; ++k) {
    using Word = decltype(Piece<T, n>::word);
    const Values<n> values =
        values_of(Piece<T, n>{load_shared(reinterpret_cast<const Word*>(shared + k * n))});
#pragma unroll
    for (int i = 0; i < n; ++i) out.tap[(k * n + i) % taps][(k * n + i) / taps] = values[i];
  }
  if (turn == Turn::none) return out;
  Weights<n> turned;
#pragma unroll
  for (int tap = 0; tap < taps; ++tap) turned.tap[tap] = out.tap[taps - 1 - tap];
  return turned;
}

template <class T, int n>
__global__ void __launch_bounds__(32 * block_warps, 2) convolve(Convolution<T> op, Strips strips) {
  auto& shared = shared_storage<WeightStorage<T, n>>();
  fetch_weights(op, shared);
  const Picture& picture = op.picture;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const std::int64_t channel = (static_cast<std::int64_t>(blockIdx.x) * 32 + lane) * n;
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.z) * block_warps + warp;
  if (row >= picture.images * picture.height || channel >= picture.channels) return;
  const int begin = static_cast<int>(blockIdx.y) * strips.length;
  const int end = begin + strips.length < picture.width ? begin + strips.length : picture.width;
  const int i = static_cast<int>(row % picture.height);
  const std::int64_t image_at = (row - i) * picture.width * picture.channels + channel;
  const ColumnsOfRow<T> x(op.x + image_at, picture, i);
  T* const y = op.y + image_at + static_cast<std::int64_t>(i) * picture.width * picture.channels;
  const Weights<n> weights = load_weights<n>(shared.value + lane * n * taps, op.turn);

  Values<n> left{}, middle{};  // of the outputs j - 1 and j, as far as columns before j go
#pragma unroll 1
  for (int first = begin - 1; first <= end; first += in_flight) {
    Column<T, n> columns[in_flight];
#pragma unroll
    for (int k = 0; k < in_flight; ++k) columns[k] = x.template load_raw<n>(min(first + k, end));
#pragma unroll
    for (int k = 0; k < in_flight; ++k) {
      const int j = first + k;
      Values<n> right{};
#pragma unroll
      for (int r = 0; r < 3; ++r) {
        const Values<n> pixel = x.values(columns[k], r, j);
#pragma unroll
        for (int c = 0; c < n; ++c) {
          left[c] = fmaf(weights.tap[3 * r + 2][c], pixel[c], left[c]);
          middle[c] = fmaf(weights.tap[3 * r + 1][c], pixel[c], middle[c]);
          right[c] = fmaf(weights.tap[3 * r][c], pixel[c], right[c]);
        }
      }
      if (j > begin && j <= end) {
        store_piece(y + (j - 1) * picture.channels, piece_of<T>(left));
      }
      left = middle;
      middle = right;
    }
  }
}

template <class T>
void convolve(Stream& stream, const char* name, const Convolution<T>& op) {
  const Picture& picture = op.picture;
  const std::int64_t rows = picture.images * picture.height;
  if (rows * picture.width * picture.channels == 0) return;
  const Strips strips(picture.width);
  const std::int64_t row_blocks = ceil_div(rows, block_warps);
  require(row_blocks < 65536, "{}: {} rows of pictures are more than a grid holds (65535 times {})",
          name, rows, block_warps);
  visit_width<quad>(picture.channels, {op.x, op.weight, op.y}, [&](auto n) {
    launch(stream,
           {.kernel = name,
            .grid = {blocks_for(name, picture.channels, 32 * n),
                     static_cast<unsigned>(strips.count), static_cast<unsigned>(row_blocks)},
            .block = {32 * block_warps},
            .shared_bytes = sizeof(WeightStorage<T, n>)},
           convolve<T, n>, op, strips);
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
