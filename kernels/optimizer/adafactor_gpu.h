// What AdaFactor in one piece and in parts have in common on GPUs: the passes over a block. Sums are
// cut by shape and added in a fixed order.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/device/stream.h"
#include "kernels/gpu/columns.h"
#include "kernels/gpu/pointwise.h"
#include "kernels/optimizer/gradient_scale_gpu.h"

namespace orchard::GPU_NAMESPACE {

inline constexpr float regulariser = 1e-30f;  // ε₁ of the paper, added to g²

// The moving averages keep β₂ = 1 - t^-0.8 of what they were (nothing at step 1) and take in the
// rest, which would lose its digits if it were computed from a β₂ near one in fp32.
struct Averaging {
  explicit Averaging(std::int64_t step)
      : keep(static_cast<float>(1.0 - std::pow(static_cast<double>(step), -0.8))),
        rest(static_cast<float>(std::pow(static_cast<double>(step), -0.8))) {}
  __device__ float operator()(float before, float value) const {
    return fmaf(keep, before, rest * value);
  }

  float keep, rest;
};

// From Σu² over the block: lr / max(1, rms(u) / threshold), what the raw update is multiplied by.
struct StoreClippedLr {
  float* clipped_lr;
  double lr, clip_threshold;
  std::int64_t count;  // elements of the block
  __device__ void operator()(double squares) const {
    const double rms = sqrt(squares / static_cast<double>(count));
    store(clipped_lr, static_cast<float>(lr / fmax(1.0, rms / clip_threshold)));
  }
};

// w -= lr·u + weight_decay·w for elements [i, i + n).
struct Weights {
  float* weights = nullptr;
  bf16* copy = nullptr;  // or absent
  float weight_decay = 0;
  const float* clipped_lr = nullptr;

  template <int n>
  __device__ void update(std::int64_t i, const Values<n>& before, const Values<n>& u,
                         float lr) const {
    // One rounding of the weight's size.
    const auto moved = [&](float w, float step) { return w - fmaf(step, lr, w * weight_decay); };
    const Values<n> after = map(moved, before, u);
    store_values(weights + i, after);
    if (copy != nullptr) store_values(copy + i, after);
  }
};

// ---- factored --------------------------------------------------------------------------------

// Each pass takes what it needs of it.
struct Factored {
  const float* gradients;               // [rows, cols]
  const float* v_row = nullptr;         // [rows]
  const float* v_col = nullptr;         // [cols]
  float* row_sums = nullptr;            // [tiles, rows] Σg² of a row within a tile of columns
  float* column_sums = nullptr;         // [strips, cols]
  double* update_squares = nullptr;     // [strips, tiles]
  const float* inverse_mean = nullptr;  // [1] 1 / mean(v_row)
  const float* gradient_scale;          // [1], or absent
  Weights weights = {};
  ColumnTiling tiling;

  template <int width>
  __device__ Values<width> gradient(std::int64_t row, const Columns<width>& columns,
                                    float scale) const {
    const Values<width> raw = load_values<width>(gradients + row * tiling.cols + columns.col);
    return map([&](float g) { return g * scale; }, raw);
  }
  // (v_row / mean(v_row))^-1/2, computed by every thread that needs it: cheaper than a kernel more.
  __device__ float row_factor(std::int64_t row, float inverse) const {
    return rsqrtf(load(v_row + row) * inverse);
  }
  template <int width>
  __device__ Values<width> column_factors(const Columns<width>& columns) const {
    if (columns.col >= tiling.cols) return {};
    return map([](float v) { return rsqrtf(v); }, load_values<width>(v_col + columns.col));
  }
};

// Pass 1: sums of g² along rows and columns.
template <int width>
__global__ void __launch_bounds__(column_threads, heavy_column_blocks)
    adafactor_collect(Factored op) {
  const Columns<width> columns(op.tiling);
  const float scale = load_scale(op.gradient_scale);
  Values<width> total{};
  columns.for_each_turn([&](std::int64_t row) { return op.gradient(row, columns, scale); },
                        [&](std::int64_t row, bool inside, const Values<width>& g) {
                          float along_row = 0;
                          if (inside) {
#pragma unroll
                            for (int i = 0; i < width; ++i) {
                              const float square = fmaf(g[i], g[i], regulariser);
                              along_row += square;
                              total[i] += square;
                            }
                          }
                          along_row = warp_sum(along_row, op.tiling.lanes);
                          if (inside && columns.lane == 0) {
                            store(op.row_sums + blockIdx.x * op.tiling.rows + row, along_row);
                          }
                        });
  columns.sum_columns(total, [&](std::int64_t col, float sum) {
    store(partial_of(op.column_sums, op.tiling, col), sum);
  });
}

// statistic[i] = moving average with the mean that `sum` gives.
struct UpdateStatistic {
  float* statistic;
  float count;  // terms of each sum
  Averaging average;
  const float* gradient_scale;
  __device__ void operator()(std::int64_t, std::int64_t i, float sum) const {
    if (!is_usable(load_scale(gradient_scale))) return;
    store(statistic + i, average(load(statistic + i), sum / count));
  }
};

struct StoreInverseMean {
  float* inverse_mean;
  std::int64_t count;
  __device__ void operator()(double total) const {
    store(inverse_mean, static_cast<float>(static_cast<double>(count) / total));
  }
};

// Pass 2: Σu².
template <int width>
__global__ void __launch_bounds__(column_threads, heavy_column_blocks)
    adafactor_measure(Factored op) {
  const Columns<width> columns(op.tiling);
  const Values<width> factors = op.column_factors(columns);
  const float inverse_mean = load(op.inverse_mean), scale = load_scale(op.gradient_scale);
  double squares = 0;
  columns.for_each_row([&](std::int64_t row) { return op.gradient(row, columns, scale); },
                       [&](std::int64_t row, const Values<width>& g) {
                         float along_row = 0;
#pragma unroll
                         for (int i = 0; i < width; ++i) {
                           const float u = g[i] * factors[i];
                           along_row = fmaf(u, u, along_row);
                         }
                         const float factor = op.row_factor(row, inverse_mean);
                         squares += factor * factor * along_row;
                       });
  auto& shared = shared_storage<BlockSum<double, column_threads>>();
  const double total = block_sum<column_threads>(squares, shared);
  if (threadIdx.x == 0) store(op.update_squares + blockIdx.y * gridDim.x + blockIdx.x, total);
}

template <int width>
struct WeightAndGradient {
  Values<width> w, g;
};

// Pass 3: the weights.
template <int width>
__global__ void __launch_bounds__(column_threads, heavy_column_blocks)
    adafactor_update(Factored op) {
  const float scale = load_scale(op.gradient_scale);
  if (!is_usable(scale)) return;
  const Columns<width> columns(op.tiling);
  const Values<width> factors = op.column_factors(columns);
  const float inverse_mean = load(op.inverse_mean), lr = load(op.weights.clipped_lr);
  const auto at = [&](std::int64_t row) { return row * op.tiling.cols + columns.col; };
  columns.for_each_row(
      [&](std::int64_t row) {
        return WeightAndGradient<width>{load_values<width>(op.weights.weights + at(row)),
                                        op.gradient(row, columns, scale)};
      },
      [&](std::int64_t row, const WeightAndGradient<width>& in) {
        const float factor = op.row_factor(row, inverse_mean);
        const auto raw = [&](float g, float column_factor) { return g * factor * column_factor; };
        op.weights.update(at(row), in.w, map(raw, in.g, factors), lr);
      });
}

template <int width>
void launch_collect(Stream& stream, const Factored& op) {
  launch(stream,
         {.kernel = "adafactor_collect",
          .grid = op.tiling.grid(),
          .block = {column_threads},
          .shared_bytes = sizeof(ColumnSums<column_threads, width>)},
         adafactor_collect<width>, op);
}
template <int width>
void launch_measure(Stream& stream, const Factored& op) {
  launch(stream,
         {.kernel = "adafactor_measure",
          .grid = op.tiling.grid(),
          .block = {column_threads},
          .shared_bytes = sizeof(BlockSum<double, column_threads>)},
         adafactor_measure<width>, op);
}
template <int width>
void launch_update(Stream& stream, const Factored& op) {
  launch(stream,
         {.kernel = "adafactor_update", .grid = op.tiling.grid(), .block = {column_threads}},
         adafactor_update<width>, op);
}

// ---- a second moment per element -------------------------------------------------------------

struct FullStatistics {
  static constexpr int width = per_vector<float>;
  const float* gradients;
  float* v;
  const float* gradient_scale;
  Averaging average;
  double total = 0;  // Σu²

  template <int n>
  struct Operands {
    Values<n> g, v;
    float scale;
  };
  template <int n>
  __device__ Operands<n> read(std::int64_t i) const {
    return {load_values<n>(gradients + i), load_values<n>(v + i), load_scale(gradient_scale)};
  }
  template <int n>
  __device__ void write(std::int64_t i, const Operands<n>& in) {
    if (!is_usable(in.scale)) return;
    Values<n> after;
    float squares = 0;
#pragma unroll
    for (int e = 0; e < n; ++e) {
      const float g = in.g[e] * in.scale;
      after[e] = average(in.v[e], fmaf(g, g, regulariser));
      squares += g * g / after[e];
    }
    total += squares;
    store_values(v + i, after);
  }
};

struct FullUpdate {
  static constexpr int width = per_vector<float>;
  const float* gradients;
  const float* v;
  const float* gradient_scale;
  Weights weights;

  template <int n>
  struct Operands {
    Values<n> w, g, v;
    float scale, lr;
  };
  template <int n>
  __device__ Operands<n> read(std::int64_t i) const {
    return {load_values<n>(weights.weights + i), load_values<n>(gradients + i),
            load_values<n>(v + i), load_scale(gradient_scale), load(weights.clipped_lr)};
  }
  template <int n>
  __device__ void write(std::int64_t i, const Operands<n>& in) const {
    if (!is_usable(in.scale)) return;
    const auto raw = [&](float g, float moment) { return g * in.scale / sqrtf(moment); };
    weights.update(i, in.w, map(raw, in.g, in.v), in.lr);
  }
};

}  // namespace orchard::GPU_NAMESPACE
