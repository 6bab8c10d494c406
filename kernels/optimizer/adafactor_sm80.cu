// AdaFactor on GPUs, from sm_80 on. Clipping by the rms of the whole update forces one pass that only
// measures it, and the factored statistics must be complete before that: factored reads the gradient
// three times, 20 bytes an element (22 with the bf16 copy) and about 12 FLOPs; unfactored twice, 28
// bytes (30) and about 15 FLOPs. Bound: HBM bandwidth.
//
// What one pass finds and the next needs stays on the device: the host never waits. Sums are cut by
// shape and added in a fixed order.
#include <cmath>
#include <cstdint>

#include "kernels/device/device.h"
#include "kernels/gpu/columns.h"
#include "kernels/gpu/pointwise.h"
#include "kernels/optimizer/optimizer.h"
#include "kernels/optimizer/optimizer_gpu.h"

namespace orchard::GPU_NAMESPACE {
namespace {

constexpr float regulariser = 1e-30f;  // ε₁ of the paper, added to g²

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
  float lr, clip_threshold;
  std::int64_t count;
  __device__ void operator()(double squares) const {
    const double rms = sqrt(squares / static_cast<double>(count));
    store(clipped_lr, static_cast<float>(lr / fmax(1.0, rms / clip_threshold)));
  }
};

StoreClippedLr clipping(const AdaFactor& op, float* clipped_lr) {
  return {clipped_lr, op.lr, op.clip_threshold, op.weights.numel()};
}

// w -= lr·u + weight_decay·w for elements [i, i + n).
struct Weights {
  float* weights;
  bf16* copy;  // or nullptr
  float weight_decay;

  template <int n>
  __device__ void update(std::int64_t i, const Values<n>& before, const Values<n>& u,
                         float lr) const {
    const auto moved = [&](float w, float step) {
      return fmaf(-step, lr, fmaf(-w, weight_decay, w));
    };
    const Values<n> after = map(moved, before, u);
    store_values(weights + i, after);
    if (copy != nullptr) store_values(copy + i, after);
  }
};

Weights weights_of(const AdaFactor& op) {
  return {op.weights.data<float>(), op.copy.data<bf16>(), op.weight_decay};
}

// ---- factored --------------------------------------------------------------------------------

struct Factored {
  const float* gradients;   // [rows, cols]
  float* v_row;             // [rows]
  float* v_col;             // [cols]
  float* row_sums;          // [tiles, rows] Σg² of a row within a tile of columns
  float* column_sums;       // [strips, cols]
  double* update_squares;   // [strips, tiles]
  float* inverse_mean_row;  // [1] 1 / mean(v_row)
  float* clipped_lr;        // [1]
  float gradient_scale;
  Weights weights;
  ColumnTiling tiling;

  template <int width>
  __device__ Values<width> gradient(std::int64_t row, const Columns<width>& columns) const {
    const Values<width> raw = load_values<width>(gradients + row * tiling.cols + columns.col);
    return map([&](float g) { return g * gradient_scale; }, raw);
  }
  // (v_row / mean(v_row))^-1/2, computed by every thread that needs it: cheaper than a kernel more.
  __device__ float row_factor(std::int64_t row, float inverse_mean) const {
    return rsqrtf(load(v_row + row) * inverse_mean);
  }
  template <int width>
  __device__ Values<width> column_factors(const Columns<width>& columns) const {
    if (columns.col >= tiling.cols) return {};
    return map([](float v) { return rsqrtf(v); }, load_values<width>(v_col + columns.col));
  }
};

// Pass 1: sums of g² along rows and columns.
template <int width>
__global__ void __launch_bounds__(column_threads) adafactor_collect(Factored op) {
  const Columns<width> columns(op.tiling);
  Values<width> total{};
  columns.for_each_turn([&](std::int64_t row) { return op.gradient(row, columns); },
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
  __device__ void operator()(std::int64_t, std::int64_t i, float sum) const {
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
__global__ void __launch_bounds__(column_threads) adafactor_measure(Factored op) {
  const Columns<width> columns(op.tiling);
  const Values<width> factors = op.column_factors(columns);
  const float inverse_mean = load(op.inverse_mean_row);
  double squares = 0;
  columns.for_each_row([&](std::int64_t row) { return op.gradient(row, columns); },
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
__global__ void __launch_bounds__(column_threads) adafactor_update(Factored op) {
  const Columns<width> columns(op.tiling);
  const Values<width> factors = op.column_factors(columns);
  const float inverse_mean = load(op.inverse_mean_row), lr = load(op.clipped_lr);
  const auto at = [&](std::int64_t row) { return row * op.tiling.cols + columns.col; };
  columns.for_each_row(
      [&](std::int64_t row) {
        return WeightAndGradient<width>{load_values<width>(op.weights.weights + at(row)),
                                        op.gradient(row, columns)};
      },
      [&](std::int64_t row, const WeightAndGradient<width>& in) {
        const float factor = op.row_factor(row, inverse_mean);
        const auto raw = [&](float g, float column_factor) { return g * factor * column_factor; };
        op.weights.update(at(row), in.w, map(raw, in.g, factors), lr);
      });
}

template <int width>
void factored_step(Stream& stream, const AdaFactor& op) {
  const std::int64_t rows = op.weights.dim(0), cols = op.weights.dim(1);
  const ColumnTiling tiling = tile_columns(1, rows, cols, width);
  const std::int64_t blocks = std::int64_t{tiling.tiles} * tiling.strips;
  const std::int64_t row_sums = tiling.tiles * rows, column_sums = tiling.strips * cols;
  std::byte* const memory =
      stream.workspace(static_cast<std::size_t>(blocks) * sizeof(double) +
                       static_cast<std::size_t>(row_sums + column_sums + 2) * sizeof(float));
  auto* const doubles = reinterpret_cast<double*>(memory);
  auto* const floats = reinterpret_cast<float*>(doubles + blocks);
  const Factored step{.gradients = op.gradients.data<float>(),
                      .v_row = op.v_row.data<float>(),
                      .v_col = op.v_col.data<float>(),
                      .row_sums = floats + 2,
                      .column_sums = floats + 2 + row_sums,
                      .update_squares = doubles,
                      .inverse_mean_row = floats,
                      .clipped_lr = floats + 1,
                      .gradient_scale = op.gradient_scale,
                      .weights = weights_of(op),
                      .tiling = tiling};
  const auto pass = [&](const char* name, void (*kernel)(Factored), std::size_t shared_bytes) {
    launch(stream,
           {.kernel = name,
            .grid = tiling.grid(),
            .block = {column_threads},
            .shared_bytes = shared_bytes},
           kernel, step);
  };
  const Averaging average(op.step);
  pass("adafactor_collect", adafactor_collect<width>, sizeof(ColumnSums<column_threads, width>));
  launch_sum_partials(stream, step.row_sums, 1, tiling.tiles, rows,
                      UpdateStatistic{step.v_row, static_cast<float>(cols), average});
  launch_sum_partials(stream, step.column_sums, 1, tiling.strips, cols,
                      UpdateStatistic{step.v_col, static_cast<float>(rows), average});
  launch_final_sum(stream, step.v_row, rows, StoreInverseMean{step.inverse_mean_row, rows});
  pass("adafactor_measure", adafactor_measure<width>, sizeof(BlockSum<double, column_threads>));
  launch_final_sum(stream, step.update_squares, blocks, clipping(op, step.clipped_lr));
  pass("adafactor_update", adafactor_update<width>, 0);
}

// ---- a second moment per element -------------------------------------------------------------

struct FullStatistics {
  static constexpr int width = per_vector<float>;
  const float* gradients;
  float* v;
  float gradient_scale;
  Averaging average;
  double total = 0;  // Σu²

  template <int n>
  struct Operands {
    Values<n> g, v;
  };
  template <int n>
  __device__ Operands<n> read(std::int64_t i) const {
    return {load_values<n>(gradients + i), load_values<n>(v + i)};
  }
  template <int n>
  __device__ void write(std::int64_t i, const Operands<n>& in) {
    Values<n> after;
    float squares = 0;
#pragma unroll
    for (int e = 0; e < n; ++e) {
      const float g = in.g[e] * gradient_scale;
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
  const float* clipped_lr;
  float gradient_scale;
  Weights weights;

  template <int n>
  struct Operands {
    Values<n> w, g, v;
    float lr;
  };
  template <int n>
  __device__ Operands<n> read(std::int64_t i) const {
    return {load_values<n>(weights.weights + i), load_values<n>(gradients + i),
            load_values<n>(v + i), load(clipped_lr)};
  }
  template <int n>
  __device__ void write(std::int64_t i, const Operands<n>& in) const {
    const auto raw = [&](float g, float moment) { return g * gradient_scale / sqrtf(moment); };
    weights.update(i, in.w, map(raw, in.g, in.v), in.lr);
  }
};

void full_step(Stream& stream, const AdaFactor& op) {
  const std::int64_t size = op.weights.numel();
  const SumChunks<FullStatistics> chunks(size);
  auto* const partials =
      reinterpret_cast<double*>(stream.workspace(chunks.size_bytes() + sizeof(float)));
  auto* const clipped_lr = reinterpret_cast<float*>(partials + chunks.count);
  const FullStatistics statistics{op.gradients.data<float>(), op.v.data<float>(), op.gradient_scale,
                                  Averaging(op.step)};
  const FullUpdate update{op.gradients.data<float>(), op.v.data<float>(), clipped_lr,
                          op.gradient_scale, weights_of(op)};
  const Elements elements{
      .count = size,
      .vectors = all_aligned(16, {update.gradients, update.v, update.weights.weights}) &&
                 all_aligned(8, {update.weights.copy})};
  launch_pointwise_sum(stream, "adafactor_statistics", statistics, elements, chunks, partials);
  launch_final_sum(stream, partials, chunks.count, clipping(op, clipped_lr));
  launch_pointwise(stream, "adafactor_full_update", update, elements);
}

void adafactor(Stream& stream, const AdaFactor& op) {
  if (op.weights.numel() == 0) return;
  if (op.v) return full_step(stream, op);
  const bool vectors = op.weights.dim(1) % per_vector<float> == 0 &&
                       all_aligned(16, {op.weights.raw(), op.gradients.raw(), op.v_col.raw()}) &&
                       all_aligned(8, {op.copy.raw()});
  (vectors ? factored_step<per_vector<float>> : factored_step<1>)(stream, op);
}

}  // namespace

void register_adafactor(OperationTable& table) {
  table.add<AdaFactor>(adafactor);
}

}  // namespace orchard::GPU_NAMESPACE
