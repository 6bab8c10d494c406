// Squeeze-and-excitation's scaling on GPUs, from sm_80 on. A thread owns some channels of an image:
// their sigmoids are computed once and stay in registers while it goes down a strip of pixels. The
// gradient of a scale sums over the image's pixels: a partial sum per strip, then the strips in
// order. Bytes for elements of e bytes: 2·e forward, 3·e backward; 1 and 3 FLOPs. Bound: HBM
// bandwidth.
#include <cstdint>

#include "kernels/activation/activation.h"
#include "kernels/activation/activation_gpu.h"
#include "kernels/core/visit.h"
#include "kernels/device/stream.h"
#include "kernels/gpu/columns.h"
#include "kernels/gpu/math.h"
#include "kernels/gpu/pieces.h"

namespace orchard::GPU_NAMESPACE {
namespace {

template <class T>
struct Excitation {
  const T* x;      // [images, pixels, channels], as d_y and out
  const T* scale;  // [images, channels]
  const T* d_y;    // backward's
  T* out;          // y or d_x

  // The sigmoids of the thread's channels.
  template <int width>
  __device__ Values<width> factors(const ColumnTiling& tiling,
                                   const Columns<width>& columns) const {
    if (columns.col >= tiling.cols) return {};
    const Values<width> in = load_values<width>(scale + blockIdx.z * tiling.cols + columns.col);
    return map([](float value) { return sigmoid(value); }, in);
  }
  // Where the thread's channels of a pixel of the block's image lie.
  template <int width>
  __device__ std::int64_t at(const ColumnTiling& tiling, const Columns<width>& columns,
                             std::int64_t pixel) const {
    return (blockIdx.z * tiling.rows + pixel) * tiling.cols + columns.col;
  }
};

template <class T, int width>
__global__ void __launch_bounds__(column_threads, column_blocks)
    excite_forward(Excitation<T> op, ColumnTiling tiling) {
  const Columns<width> columns(tiling);
  const Values<width> factors = op.factors(tiling, columns);
  columns.for_each_row(
      [&](std::int64_t pixel) { return load_piece<width>(op.x + op.at(tiling, columns, pixel)); },
      [&](std::int64_t pixel, const Piece<T, width>& x) {
        store_values(
            op.out + op.at(tiling, columns, pixel),
            map([](float value, float factor) { return value * factor; }, values_of(x), factors));
      });
}

template <class T, int width>
struct PixelPair {
  Piece<T, width> x, d_y;
};

template <class T, int width>
__global__ void __launch_bounds__(column_threads, heavy_column_blocks)
    excite_backward(Excitation<T> op, ColumnTiling tiling, float* partials) {
  const Columns<width> columns(tiling);
  const Values<width> factors = op.factors(tiling, columns);
  Values<width> total{};
  columns.for_each_row(
      [&](std::int64_t pixel) {
        const std::int64_t at = op.at(tiling, columns, pixel);
        return PixelPair<T, width>{load_piece<width>(op.x + at), load_piece<width>(op.d_y + at)};
      },
      [&](std::int64_t pixel, const PixelPair<T, width>& in) {
        const Values<width> x = values_of(in.x), d_y = values_of(in.d_y);
#pragma unroll
        for (int i = 0; i < width; ++i) total[i] = fmaf(d_y[i], x[i], total[i]);
        store_values(op.out + op.at(tiling, columns, pixel),
                     map([](float d, float factor) { return d * factor; }, d_y, factors));
      });
  columns.sum_columns(
      total, [&](std::int64_t col, float sum) { store(partial_of(partials, tiling, col), sum); });
}

// d_scale = σ·(1 - σ)·(sum over pixels of d_y·x).
template <class T>
struct ScaleGradient {
  const T* scale;
  T* d_scale;  // may be scale
  std::int64_t channels;

  __device__ void operator()(std::int64_t image, std::int64_t channel, float sum) const {
    const std::int64_t at = image * channels + channel;
    const float s = sigmoid(widen(load(scale + at)));
    store(d_scale + at, narrow<T>(sum * fmaf(-s, s, s)));
  }
};

template <class T, int width>
void forward(Stream& stream, const Excitation<T>& op, const ExciteForward& shape) {
  const ColumnTiling tiling = tile_columns(shape.x.dim(0), shape.x.dim(1), shape.x.dim(2), width);
  if (tiling.empty()) return;
  launch(stream, {.kernel = "excite_forward", .grid = tiling.grid(), .block = {column_threads}},
         excite_forward<T, width>, op, tiling);
}

template <class T, int width>
void backward(Stream& stream, const Excitation<T>& op, const ExciteBackward& shape) {
  const ColumnTiling tiling =
      tile_columns(shape.x.dim(0), shape.x.dim(1), shape.x.dim(2), width, heavy_column_blocks);
  auto* const partials = reinterpret_cast<float*>(stream.workspace(
      static_cast<std::size_t>(tiling.partial_rows() * tiling.cols) * sizeof(float)));
  if (!tiling.empty()) {
    launch(stream,
           {.kernel = "excite_backward",
            .grid = tiling.grid(),
            .block = {column_threads},
            .shared_bytes = sizeof(ColumnSums<column_threads, width>)},
           excite_backward<T, width>, op, tiling, partials);
  }
  launch_sum_partials(stream, partials, tiling.batches, tiling.strips, tiling.cols,
                      ScaleGradient<T>{op.scale, shape.d_scale.data<T>(), tiling.cols});
}

// Whether channels and addresses allow 16-byte accesses.
template <class T>
bool takes_vectors(const Excitation<T>& op, std::int64_t channels) {
  return channels % per_vector<T> == 0 && all_aligned(16, {op.x, op.scale, op.d_y, op.out});
}

template <class T>
void run_forward(Stream& stream, const ExciteForward& op) {
  const Excitation<T> kernel{op.x.data<T>(), op.scale.data<T>(), nullptr, op.y.data<T>()};
  const bool vectors = takes_vectors(kernel, op.x.dim(2));
  (vectors ? forward<T, per_vector<T>> : forward<T, 1>)(stream, kernel, op);
}

template <class T>
void run_backward(Stream& stream, const ExciteBackward& op) {
  const Excitation<T> kernel{op.x.data<T>(), op.scale.data<T>(), op.d_y.data<T>(),
                             op.d_x.data<T>()};
  const bool vectors = takes_vectors(kernel, op.x.dim(2));
  (vectors ? backward<T, per_vector<T>> : backward<T, 1>)(stream, kernel, op);
}

}  // namespace

void register_excite(OperationTable& table) {
  table.add<ExciteForward>([](Stream& stream, const ExciteForward& op) {
    visit_float(op.x.dtype(), [&]<class T>(T) { run_forward<T>(stream, op); });
  });
  table.add<ExciteBackward>([](Stream& stream, const ExciteBackward& op) {
    visit_float(op.x.dtype(), [&]<class T>(T) { run_backward<T>(stream, op); });
  });
}

}  // namespace orchard::GPU_NAMESPACE
