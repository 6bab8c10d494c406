// The weight gradient of the depthwise 3x3 convolution on GPUs, from sm_80 on.
//
// Bytes: 2·e per element of e bytes, and 72 per weight and part of the pixels (below). FLOPs: 18 per
// element. Bound: HBM bandwidth, as long as the caches serve the neighbouring rows: an element of x
// is asked for three times.
//
// Two launches. First, each block adds up the gradient over its part of the picture rows, for 32
// neighbouring runs of channels: its four warps take rows in turn, walk along them with the nine
// sums of their channels in registers, and meet in shared memory. Then the parts are added in order.
// How many parts there are depends on the shape alone: a run repeats bit for bit, on every GPU.
#include <algorithm>

#include "kernels/convolution/convolution.h"
#include "kernels/convolution/convolution_gpu.h"
#include "kernels/convolution/pixels.h"
#include "kernels/core/visit.h"
#include "kernels/device/device.h"
#include "kernels/gpu/grid.h"

namespace orchard::GPU_NAMESPACE {
namespace {

constexpr int block_warps = 4;

template <class T>
struct Correlation {
  const T* x;
  const T* d_y;
  Picture picture;
  float* partial;  // [parts, channels, 9]
};

template <int n>
struct TapSums {
  float sum[taps * n][32];  // a lane's column: no two lanes share a bank
};

template <class T, int n>
__global__ void __launch_bounds__(32 * block_warps) correlate(Correlation<T> op) {
  const Picture& picture = op.picture;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const std::int64_t channel = (static_cast<std::int64_t>(blockIdx.x) * 32 + lane) * n;
  const bool inside = channel < picture.channels;
  const std::int64_t row_size = picture.width * picture.channels;
  Values<n> sums[taps] = {};
  for (std::int64_t row = static_cast<std::int64_t>(blockIdx.y) * block_warps + warp;
       inside && row < picture.images * picture.height;
       row += static_cast<std::int64_t>(gridDim.y) * block_warps) {
    const int i = static_cast<int>(row % picture.height);
    const T* const x = op.x + (row - i) * row_size + channel;
    const T* const d_y = op.d_y + row * row_size + channel;
    const auto d_y_at = [&](int j) {
      return j < picture.width ? load_values<n>(d_y + j * picture.channels) : Values<n>{};
    };
    // Column j of x meets the outputs j - 1, j and j + 1. The loads of the next are in flight while
    // it does; unrolled further, the loop would need more registers than there are.
    Values<n> left{}, middle = d_y_at(0), right = d_y_at(1);
    Column<T, n> next = load_column<n>(x, picture, i, 0);
#pragma unroll 1
    for (int j = 0; j < picture.width; ++j) {
      const Column<T, n> column = next;
      next = load_column<n>(x, picture, i, j + 1);
      const Values<n> after = d_y_at(j + 2);
#pragma unroll
      for (int r = 0; r < 3; ++r) {
        const Values<n> pixel = values_of(column.row[r]);
#pragma unroll
        for (int c = 0; c < n; ++c) {
          float& first = sums[3 * r][c];
          float& second = sums[3 * r + 1][c];
          float& third = sums[3 * r + 2][c];
          first = fmaf(right[c], pixel[c], first);
          second = fmaf(middle[c], pixel[c], second);
          third = fmaf(left[c], pixel[c], third);
        }
      }
      left = middle;
      middle = right;
      right = after;
    }
  }

  auto& shared = shared_storage<TapSums<n>>();
  for (int turn = 0; turn < block_warps; ++turn) {
    if (turn == warp) {
#pragma unroll
      for (int tap = 0; tap < taps; ++tap) {
#pragma unroll
        for (int c = 0; c < n; ++c) {
          float& sum = shared.sum[c * taps + tap][lane];
          sum = sums[tap][c] + (turn == 0 ? 0.0f : sum);
        }
      }
    }
    __syncthreads();
  }
  // The block's gradients lie together in `partial`.
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * 32 * taps * n;
  float* const partial = op.partial + blockIdx.y * picture.channels * taps;
  for (int k = static_cast<int>(threadIdx.x); k < 32 * taps * n; k += 32 * block_warps) {
    if (first + k < picture.channels * taps) {
      store(partial + first + k, shared.sum[k % (taps * n)][k / (taps * n)]);
    }
  }
}

constexpr int add_threads = 128;

// d_weight[k] += Σ_part partial[part][k]
__global__ void __launch_bounds__(add_threads)
    add_parts(const float* partial, int parts, std::int64_t size, float* d_weight) {
  constexpr int in_flight = 8;
  const std::int64_t k =
      static_cast<std::int64_t>(blockIdx.x) * add_threads + static_cast<int>(threadIdx.x);
  if (k >= size) return;
  float sum = 0;
  for (int first = 0; first < parts; first += in_flight) {
    float held[in_flight];
#pragma unroll
    for (int i = 0; i < in_flight; ++i) {
      held[i] = first + i < parts ? load(partial + (first + i) * size + k) : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < in_flight; ++i) sum += held[i];
  }
  store(d_weight + k, load(d_weight + k) + sum);
}

// Parts of the picture rows: three blocks, as many as registers allow, on each SM of a large GPU, as
// long as each warp has a row.
int parts_of(const Picture& picture, unsigned channel_blocks) {
  constexpr std::int64_t blocks_wanted = 384;
  const std::int64_t most = ceil_div(picture.images * picture.height, block_warps);
  return static_cast<int>(std::clamp<std::int64_t>(blocks_wanted / channel_blocks, 1, most));
}

template <class T>
void weight_gradient(Stream& stream, const DepthwiseConv3x3BackwardWeight& op) {
  const Picture picture(op.x.shape());
  const std::int64_t size = picture.channels * taps;
  visit_piece<T>(picture.channels, {op.x.raw(), op.d_y.raw()}, [&](auto n) {
    const unsigned channel_blocks = blocks_for("depthwise weights", picture.channels, 32 * n);
    const int parts = parts_of(picture, channel_blocks);
    auto* const partial = reinterpret_cast<float*>(
        stream.workspace(static_cast<std::size_t>(parts * size) * sizeof(float)));
    launch(stream,
           {.kernel = "depthwise_conv_3x3_backward_weight",
            .grid = {channel_blocks, static_cast<unsigned>(parts)},
            .block = {32 * block_warps},
            .shared_bytes = sizeof(TapSums<n>)},
           correlate<T, n>, Correlation<T>{op.x.data<T>(), op.d_y.data<T>(), picture, partial});
    launch(stream,
           {.kernel = "add_parts",
            .grid = {blocks_for("add_parts", size, add_threads)},
            .block = {add_threads}},
           add_parts, partial, parts, size, op.d_weight.data<float>());
  });
}

}  // namespace

void register_depthwise_weight_gradient(OperationTable& table) {
  table.add<DepthwiseConv3x3BackwardWeight>(
      [](Stream& stream, const DepthwiseConv3x3BackwardWeight& op) {
        if (op.x.numel() == 0) return;
        visit_float(op.x.dtype(), [&]<class T>(T) { weight_gradient<T>(stream, op); });
      });
}

}  // namespace orchard::GPU_NAMESPACE
