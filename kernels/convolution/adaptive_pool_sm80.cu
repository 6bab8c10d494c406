// Adaptive average pooling on GPUs, from sm_80 on. Forward and backward are one gather: the outputs
// whose bins hold input i of n, for m outputs, are floor(i·m/n) ... ceil((i+1)·m/n) - 1, the bin
// formula with n and m exchanged. So no two threads write one pixel, and every sum has a fixed
// order.
//
// Bytes: e per element of e bytes of both pictures; each source pixel feeds one to four targets,
// mostly from cache. FLOPs: 2 per source element and target. Bound: HBM bandwidth.
//
// A warp sums one target pixel, four runs of channels a lane, so that where the bins lie, which takes
// divisions, is found out once. Where bins are large (the global mean), the warps of a block share a bin, in
// 128 channels each, and add up in shared memory.
#include <algorithm>

#include "kernels/convolution/convolution.h"
#include "kernels/convolution/convolution_gpu.h"
#include "kernels/convolution/pixels.h"
#include "kernels/core/visit.h"
#include "kernels/device/stream.h"
#include "kernels/gpu/grid.h"

namespace orchard::GPU_NAMESPACE {
namespace {

constexpr int pixel_warps = 4;  // of a block, a pixel each
constexpr int bin_warps = 16;   // of a block, which share a bin

struct Bin {
  unsigned begin, size;
};

// The `sources` pixels of one side that target `i` of `targets` reads. Sides are below 2^15: divisions of
// 64 bits take several times as long, and would bound these kernels.
__device__ inline Bin bin_of(unsigned i, unsigned sources, unsigned targets) {
  const unsigned begin = i * sources / targets;
  return {begin, ((i + 1) * sources + targets - 1) / targets - begin};
}

enum class Divisor : std::uint8_t {
  target_bin,  // forward: the mean over the target's own bin
  source_bin,  // backward: each source pixel's gradient is shared by the pixels of its bin
};

template <class T>
struct Pool {
  const T* source;
  const T* extra;  // or nullptr; target may alias it
  T* target;
  Picture from, to;
  Divisor divisor;
};

// What a target pixel is the weighted sum of.
template <class T>
struct Sources {
  const T* image;  // of the source picture
  Bin rows, cols;
  unsigned area;

  __device__ Sources(const Pool<T>& op, unsigned pixel) {
    const auto width = static_cast<unsigned>(op.to.width);
    const auto height = static_cast<unsigned>(op.to.height);
    const unsigned row = pixel / width, image_number = row / height;
    rows = bin_of(row % height, static_cast<unsigned>(op.from.height), height);
    cols = bin_of(pixel % width, static_cast<unsigned>(op.from.width), width);
    area = rows.size * cols.size;
    image =
        op.source + std::int64_t{image_number} * op.from.height * op.from.width * op.from.channels;
  }
};

// Adds the source pixels at, at + step, ... of a bin, `at_once` of them, to the totals of `chunks` runs of n
// channels each, which begin at `channels`.
template <int at_once, class T, int n, int chunks>
__device__ void add_pixels(const Pool<T>& op, const Sources<T>& from, unsigned at, unsigned step,
                           const std::int64_t (&channels)[chunks], Values<n> (&total)[chunks]) {
  Piece<T, n> held[at_once][chunks];
  float weight[at_once];
#pragma unroll
  for (int k = 0; k < at_once; ++k) {
    const unsigned place = at + static_cast<unsigned>(k) * step;
    const unsigned r = from.rows.begin + place / from.cols.size;
    const unsigned s = from.cols.begin + place % from.cols.size;
    const T* const pixel = from.image + (std::int64_t{r} * op.from.width + s) * op.from.channels;
#pragma unroll
    for (int c = 0; c < chunks; ++c) held[k][c] = load_piece<n>(pixel + channels[c]);
    unsigned area = from.area;
    if (op.divisor == Divisor::source_bin) {
      area =
          bin_of(r, static_cast<unsigned>(op.to.height), static_cast<unsigned>(op.from.height))
              .size *
          bin_of(s, static_cast<unsigned>(op.to.width), static_cast<unsigned>(op.from.width)).size;
    }
    weight[k] = 1.0f / static_cast<float>(area);
  }
#pragma unroll
  for (int k = 0; k < at_once; ++k) {
#pragma unroll
    for (int c = 0; c < chunks; ++c) {
      const Values<n> values = values_of(held[k][c]);
#pragma unroll
      for (int i = 0; i < n; ++i) total[c][i] = fmaf(weight[k], values[i], total[c][i]);
    }
  }
}

template <class T, int n>
__device__ void store_pixel(const Pool<T>& op, std::int64_t at, Values<n> total) {
  if (op.extra != nullptr) {
    const Values<n> extra = load_values<n>(op.extra + at);
#pragma unroll
    for (int i = 0; i < n; ++i) total[i] += extra[i];
  }
  store_piece(op.target + at, piece_of<T>(total));
}

// A warp is one pixel's, in 32 · n · chunks channels. Lanes beyond the last channel read the last ones once
// more, so that loads take no branch.
template <class T, int n, int chunks>
__global__ void __launch_bounds__(32 * pixel_warps) pool_pixels(Pool<T> op) {
  const unsigned pixel = blockIdx.x * pixel_warps + threadIdx.x / 32;
  if (pixel >= op.to.images * op.to.height * op.to.width) return;
  const std::int64_t first =
      (static_cast<std::int64_t>(blockIdx.y) * 32 * chunks + threadIdx.x % 32) * n;
  std::int64_t channels[chunks];
#pragma unroll
  for (int c = 0; c < chunks; ++c) {
    channels[c] = std::min<std::int64_t>(first + c * 32 * n, op.to.channels - n);
  }
  const Sources<T> from(op, pixel);
  Values<n> total[chunks] = {};
  unsigned at = 0;
  for (; at + 2 <= from.area; at += 2) add_pixels<2>(op, from, at, 1, channels, total);
  if (at < from.area) add_pixels<1>(op, from, at, 1, channels, total);
#pragma unroll
  for (int c = 0; c < chunks; ++c) {
    if (first + c * 32 * n >= op.to.channels) continue;
    store_pixel(op, std::int64_t{pixel} * op.to.channels + channels[c], total[c]);
  }
}

template <int n>
struct BinSums {
  float sum[bin_warps][n][32];
};

// A block is one pixel's, in 32 · n channels, and its warps share the bin.
template <class T, int n>
__global__ void __launch_bounds__(32 * bin_warps) pool_bins(Pool<T> op) {
  auto& shared = shared_storage<BinSums<n>>();
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, pixel = blockIdx.x;
  const std::int64_t channel = (static_cast<std::int64_t>(blockIdx.y) * 32 + lane) * n;
  const std::int64_t channels[1] = {std::min<std::int64_t>(channel, op.to.channels - n)};
  const Sources<T> from(op, pixel);
  Values<n> total[1] = {};
  unsigned at = warp;
  for (; at + 7 * bin_warps < from.area; at += 8 * bin_warps) {
    add_pixels<8>(op, from, at, bin_warps, channels, total);
  }
  if (at + 3 * bin_warps < from.area) {
    add_pixels<4>(op, from, at, bin_warps, channels, total);
    at += 4 * bin_warps;
  }
#pragma unroll 1
  for (; at < from.area; at += bin_warps) {
    add_pixels<1>(op, from, at, bin_warps, channels, total);
  }
#pragma unroll
  for (int i = 0; i < n; ++i) shared.sum[warp][i][lane] = total[0][i];
  __syncthreads();
  if (warp > 0 || channel >= op.to.channels) return;
#pragma unroll
  for (int i = 0; i < n; ++i) {
    for (int other = 1; other < bin_warps; ++other) total[0][i] += shared.sum[other][i][lane];
  }
  store_pixel(op, std::int64_t{pixel} * op.to.channels + channel, total[0]);
}

template <class T, int n, int chunks>
void launch_pixels(Stream& stream, const char* name, const Pool<T>& op, std::int64_t pixels) {
  launch(stream,
         {.kernel = name,
          .grid = {blocks_for(name, pixels, pixel_warps),
                   blocks_for(name, op.to.channels, 32 * n * chunks)},
          .block = {32 * pixel_warps}},
         pool_pixels<T, n, chunks>, op);
}

template <class T>
void pool(Stream& stream, const char* name, const Pool<T>& op) {
  const std::int64_t pixels = op.to.images * op.to.height * op.to.width;
  if (pixels * op.to.channels == 0) return;
  constexpr int side_limit = 1 << 15;
  const int side = std::max({op.from.height, op.from.width, op.to.height, op.to.width});
  require(side < side_limit, "{}: a side of {} pixels, GPU kernels take fewer than {}", name, side,
          side_limit);
  require(pixels < std::int64_t{1} << 31, "{}: {} pixels are more than GPU kernels count (2^31)",
          name, pixels);
  const std::int64_t bin =
      ceil_div(op.from.height, op.to.height) * ceil_div(op.from.width, op.to.width);
  if (bin > 2 * bin_warps) {
    return visit_width<quad>(op.to.channels, {op.source, op.extra, op.target}, [&](auto n) {
      launch(stream,
             {.kernel = name,
              .grid = {blocks_for(name, pixels, 1), blocks_for(name, op.to.channels, 32 * n)},
              .block = {32 * bin_warps},
              .shared_bytes = sizeof(BinSums<n>)},
             pool_bins<T, n>, op);
    });
  }
  visit_piece<T>(op.to.channels, {op.source, op.extra, op.target}, [&](auto n) {
    (op.to.channels > 32 * n ? launch_pixels<T, n, 4> : launch_pixels<T, n, 1>)(stream, name, op,
                                                                                pixels);
  });
}

void adaptive_pool_forward(Stream& stream, const AdaptiveAveragePoolForward& op) {
  visit_float(op.x.dtype(), [&]<class T>(T) {
    pool<T>(stream, "adaptive_pool",
            {.source = op.x.data<T>(),
             .extra = nullptr,
             .target = op.y.data<T>(),
             .from = Picture(op.x.shape()),
             .to = Picture(op.y.shape()),
             .divisor = Divisor::target_bin});
  });
}

void adaptive_pool_backward(Stream& stream, const AdaptiveAveragePoolBackward& op) {
  visit_float(op.d_y.dtype(), [&]<class T>(T) {
    pool<T>(stream, "adaptive_pool_backward",
            {.source = op.d_y.data<T>(),
             .extra = op.d_extra.data<T>(),
             .target = op.d_x.data<T>(),
             .from = Picture(op.d_y.shape()),
             .to = Picture(op.d_x.shape()),
             .divisor = Divisor::source_bin});
  });
}

}  // namespace

void register_adaptive_pool(OperationTable& table) {
  table.add<AdaptiveAveragePoolForward>(adaptive_pool_forward);
  table.add<AdaptiveAveragePoolBackward>(adaptive_pool_backward);
}

}  // namespace orchard::GPU_NAMESPACE
