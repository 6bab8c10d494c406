// Adaptive average pooling on GPUs, from sm_80 on. Forward and backward are one gather: the outputs
// whose bins hold input i of n, for m outputs, are floor(i·m/n) ... ceil((i+1)·m/n) - 1, the bin
// formula with n and m exchanged. So no two threads write one pixel, and every sum has a fixed
// order.
//
// Bytes: e per element of e bytes of both pictures; each source pixel feeds one to four targets,
// mostly from cache. FLOPs: 2 per source element and target. Bound: HBM bandwidth.
//
// A thread sums a run of channels of one target pixel. Where bins are large (the global mean), the
// eight warps of a block share a bin and add up in shared memory.
#include "kernels/convolution/convolution.h"
#include "kernels/convolution/convolution_gpu.h"
#include "kernels/convolution/pixels.h"
#include "kernels/core/visit.h"
#include "kernels/device/device.h"
#include "kernels/gpu/grid.h"

namespace orchard::GPU_NAMESPACE {
namespace {

constexpr int block_warps = 8;

struct Bin {
  int begin, size;
};

// The `sources` pixels of one side that target `i` of `targets` reads.
__device__ inline Bin bin_of(std::int64_t i, int sources, int targets) {
  const auto begin = static_cast<int>(i * sources / targets);
  const auto end = static_cast<int>(((i + 1) * sources + targets - 1) / targets);
  return {begin, end - begin};
}

enum class Divisor : std::uint8_t {
  target_bin,  // forward: the mean over the target's own bin
  source_bin,  // backward: each source pixel's gradient is shared by the pixels of its bin
};
enum class Share : std::uint8_t {
  warp_per_pixel,   // eight target pixels a block
  block_per_pixel,  // one, whose bin the warps share
};

template <class T>
struct Pool {
  const T* source;
  const T* extra;  // or nullptr; target may alias it
  T* target;
  Picture from, to;
  Divisor divisor;
  Share share = Share::warp_per_pixel;
};

template <int n>
struct PixelSums {
  float sum[block_warps][n][32];
};

// The weight of source pixel (r, s) in a target with a bin of `area` pixels.
template <class T>
__device__ float weight_of(const Pool<T>& op, int r, int s, int area) {
  if (op.divisor == Divisor::source_bin) {
    area =
        bin_of(r, op.to.height, op.from.height).size * bin_of(s, op.to.width, op.from.width).size;
  }
  return 1.0f / static_cast<float>(area);
}

template <class T, int n>
__global__ void __launch_bounds__(32 * block_warps) pool(Pool<T> op) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const bool shared_bin = op.share == Share::block_per_pixel;
  const std::int64_t channel = (static_cast<std::int64_t>(blockIdx.y) * 32 + lane) * n;
  const std::int64_t pixel =
      shared_bin ? blockIdx.x : static_cast<std::int64_t>(blockIdx.x) * block_warps + warp;
  const bool inside = channel < op.to.channels && pixel < op.to.images * op.to.height * op.to.width;
  if (!shared_bin && !inside) return;

  Values<n> total{};
  if (inside) {
    const auto j = static_cast<int>(pixel % op.to.width);
    const auto i = static_cast<int>(pixel / op.to.width % op.to.height);
    const std::int64_t image = pixel / op.to.width / op.to.height;
    const Bin rows = bin_of(i, op.from.height, op.to.height);
    const Bin cols = bin_of(j, op.from.width, op.to.width);
    const int area = rows.size * cols.size;
    const T* const source =
        op.source + image * op.from.height * op.from.width * op.from.channels + channel;
#pragma unroll 4
    for (int at = shared_bin ? warp : 0; at < area; at += shared_bin ? block_warps : 1) {
      const int r = rows.begin + at / cols.size, s = cols.begin + at % cols.size;
      const Values<n> value = load_values<n>(
          source + (static_cast<std::int64_t>(r) * op.from.width + s) * op.from.channels);
      const float weight = weight_of(op, r, s, area);
#pragma unroll
      for (int c = 0; c < n; ++c) total[c] = fmaf(weight, value[c], total[c]);
    }
  }
  if (shared_bin) {
    auto& shared = shared_storage<PixelSums<n>>();
#pragma unroll
    for (int c = 0; c < n; ++c) shared.sum[warp][c][lane] = total[c];
    __syncthreads();
    if (warp > 0 || !inside) return;
#pragma unroll
    for (int c = 0; c < n; ++c) {
      for (int other = 1; other < block_warps; ++other) {
        total[c] += shared.sum[other][c][lane];
      }
    }
  }
  const std::int64_t at = pixel * op.to.channels + channel;
  if (op.extra != nullptr) {
    const Values<n> extra = load_values<n>(op.extra + at);
#pragma unroll
    for (int c = 0; c < n; ++c) total[c] += extra[c];
  }
  store_values(op.target + at, total);
}

template <class T>
void pool(Stream& stream, const char* name, Pool<T> op) {
  const std::int64_t pixels = op.to.images * op.to.height * op.to.width;
  if (pixels * op.to.channels == 0) return;
  // A bin of fewer pixels would leave the warps with no more than two each.
  constexpr std::int64_t large_bin = 16;
  const std::int64_t bin =
      ceil_div(op.from.height, op.to.height) * ceil_div(op.from.width, op.to.width);
  op.share = bin > large_bin ? Share::block_per_pixel : Share::warp_per_pixel;
  const bool shared_bin = op.share == Share::block_per_pixel;
  visit_piece<T>(op.to.channels, {op.source, op.extra, op.target}, [&](auto n) {
    launch(stream,
           {.kernel = name,
            .grid = {blocks_for(name, pixels, shared_bin ? 1 : block_warps),
                     blocks_for(name, op.to.channels, 32 * n)},
            .block = {32 * block_warps},
            .shared_bytes = shared_bin ? sizeof(PixelSums<n>) : 0},
           pool<T, n>, op);
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
