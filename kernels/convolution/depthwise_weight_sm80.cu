// The weight gradient of the depthwise 3x3 convolution on GPUs, from sm_80 on.
//
// Bytes: 2·e per element of e bytes, and 72 per weight and part of the pixels (below). FLOPs: 18 per
// element. Bound: HBM bandwidth, as long as the caches serve the neighbouring rows: an element of x
// is asked for three times.
//
// Two launches. First, each block adds up the gradient over its part of the pictures, for 32 neighbouring
// runs of four channels: its warps take strips of picture rows in turn, neighbouring rows at a time, walk
// along them with the nine sums of their channels in registers, and meet in shared memory. Then the parts
// are added in order. How many parts there are depends on the shape alone: a run repeats bit for bit, on
// every GPU.
#include <algorithm>

#include "kernels/convolution/convolution.h"
#include "kernels/convolution/convolution_gpu.h"
#include "kernels/convolution/pixels.h"
#include "kernels/core/visit.h"
#include "kernels/device/stream.h"
#include "kernels/gpu/columns.h"
#include "kernels/gpu/grid.h"

namespace orchard::GPU_NAMESPACE {
namespace {

constexpr int block_warps = 8;
// Columns of x and d_y in flight.
template <class T>
constexpr int in_flight = sizeof(T) == 2 ? 4 : 2;

template <class T>
struct Correlation {
  const T* x;
  const T* d_y;
  Picture picture;
  Strips strips;
  float* partial = nullptr;  // [parts, channels, 9]
};

template <int n>
struct TapSums {
  float of_warp[block_warps][taps * n][32];  // a lane's column: no two lanes share a bank
};

// Adds to `sums` what strip `begin` ... of a row of d_y brings, by the thread's channels of row i of x.
template <class T, int n>
__device__ void correlate_strip(const ColumnsOfRow<T>& x, const T* d_y, int begin, int end,
                                Values<n> (&sums)[taps]) {
  constexpr int at_once = in_flight<T>;
  const auto load_d_y = [&](int j) {
    const std::int64_t at = (j < 0 ? 0 : j < x.width ? j : x.width - 1) * x.channels;
    return load_piece<n>(d_y + at);
  };
  const auto d_y_of = [&](const Piece<T, n>& raw, int j) {
    return values_of(j >= 0 && j < x.width ? raw : Piece<T, n>{});
  };
  // Column j of x meets the outputs j - 1, j and j + 1.
  Values<n> left = d_y_of(load_d_y(begin - 1), begin - 1), middle = values_of(load_d_y(begin));
#pragma unroll 1
  for (int first = begin; first < end; first += at_once) {
    Column<T, n> columns[at_once];
    Piece<T, n> after[at_once];
#pragma unroll
    for (int k = 0; k < at_once; ++k) {
      columns[k] = x.template load_raw<n>(min(first + k, end - 1));
      after[k] = load_d_y(min(first + k, end - 1) + 1);
    }
#pragma unroll
    for (int k = 0; k < at_once; ++k) {
      const int j = first + k;
      if (j >= end) break;  // whole warps
      const Values<n> right = d_y_of(after[k], j + 1);
#pragma unroll
      for (int r = 0; r < 3; ++r) {
        const Values<n> pixel = x.values(columns[k], r, j);
#pragma unroll
        for (int c = 0; c < n; ++c) {
          sums[3 * r][c] = fmaf(right[c], pixel[c], sums[3 * r][c]);
          sums[3 * r + 1][c] = fmaf(middle[c], pixel[c], sums[3 * r + 1][c]);
          sums[3 * r + 2][c] = fmaf(left[c], pixel[c], sums[3 * r + 2][c]);
        }
      }
      left = middle;
      middle = right;
    }
  }
}

template <class T, int n>
__global__ void __launch_bounds__(32 * block_warps, 2) correlate(Correlation<T> op) {
  const Picture& picture = op.picture;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const std::int64_t channel = (static_cast<std::int64_t>(blockIdx.x) * 32 + lane) * n;
  const bool inside = channel < picture.channels;
  const std::int64_t row_size = picture.width * picture.channels;
  const std::int64_t rows = picture.images * picture.height, items = rows * op.strips.count;
  Values<n> sums[taps] = {};
  for (std::int64_t item = static_cast<std::int64_t>(blockIdx.y) * block_warps + warp;
       inside && item < items; item += static_cast<std::int64_t>(gridDim.y) * block_warps) {
    const std::int64_t row = item % rows;
    const int i = static_cast<int>(row % picture.height);
    const int begin = static_cast<int>(item / rows) * op.strips.length;
    const int end = std::min(begin + op.strips.length, picture.width);
    correlate_strip<T, n>({op.x + (row - i) * row_size + channel, picture, i},
                          op.d_y + row * row_size + channel, begin, end, sums);
  }

  auto& shared = shared_storage<TapSums<n>>();
#pragma unroll
  for (int tap = 0; tap < taps; ++tap) {
#pragma unroll
    for (int c = 0; c < n; ++c) shared.of_warp[warp][c * taps + tap][lane] = sums[tap][c];
  }
  __syncthreads();
  // The block's gradients lie together in `partial`.
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * 32 * taps * n;
  float* const partial = op.partial + blockIdx.y * picture.channels * taps;
  for (int k = static_cast<int>(threadIdx.x); k < 32 * taps * n; k += 32 * block_warps) {
    if (first + k >= picture.channels * taps) continue;
    float total = 0;
    for (int w = 0; w < block_warps; ++w) {
      total += shared.of_warp[w][k % (taps * n)][k / (taps * n)];
    }
    store(partial + first + k, total);
  }
}

// How many parts there are: as many as two blocks on each SM of an H100, each with as many turns.
int parts_of(std::int64_t items, unsigned channel_blocks) {
  constexpr std::int64_t blocks_at_once = 2 * 132;
  const std::int64_t most = std::max<std::int64_t>(blocks_at_once / channel_blocks, 1);
  const std::int64_t turns = ceil_div(items, most * block_warps);
  return static_cast<int>(ceil_div(items, turns * block_warps));
}

template <class T>
void weight_gradient(Stream& stream, const DepthwiseConv3x3BackwardWeight& op) {
  const Picture picture(op.x.shape());
  const std::int64_t size = picture.channels * taps;
  Correlation<T> correlation{op.x.data<T>(), op.d_y.data<T>(), picture, Strips(picture.width)};
  const std::int64_t items = picture.images * picture.height * correlation.strips.count;
  visit_width<quad>(picture.channels, {op.x.raw(), op.d_y.raw()}, [&](auto n) {
    const unsigned channel_blocks = blocks_for("depthwise weights", picture.channels, 32 * n);
    const int parts = parts_of(items, channel_blocks);
    correlation.partial = reinterpret_cast<float*>(
        stream.workspace(static_cast<std::size_t>(parts * size) * sizeof(float)));
    launch(stream,
           {.kernel = "depthwise_conv_3x3_backward_weight",
            .grid = {channel_blocks, static_cast<unsigned>(parts)},
            .block = {32 * block_warps},
            .shared_bytes = sizeof(TapSums<n>)},
           correlate<T, n>, correlation);
    launch_sum_partials(stream, correlation.partial, 1, parts, size,
                        AddToTotal{op.d_weight.data<float>()});
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
