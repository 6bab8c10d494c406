// RMSNorm and LayerNorm backward on GPUs, from sm_80 on. With x̂ = (x - mean)·r (RMSNorm: mean = 0; r
// the inverse of rms or deviation) and g = d_y·weight:
//   d_x = r·(g - mean(g) - x̂·mean(g·x̂)) + d_sum   (RMSNorm: without mean(g))
//   d_weight += Σ_rows d_y·x̂,  d_bias += Σ_rows d_y
//
// Bytes: 3·e per element, 4·e with d_sum, for elements of e bytes; FLOPs: about 14. Bound: HBM
// bandwidth. Each row is read once. A block goes down a strip of rows and keeps its share of the
// weight's gradient in registers all the way; the shares of the strips are then added in order, so the
// gradient has the same bits every time. Strips have 8 or more rows for each row that is worked on at a
// time: the shares are small and stay in the L2 cache.
//
// The next row is on its way to shared memory (cp.async) while a row is worked on, so the bytes in flight,
// some 90 KB on an SM, cost no registers and do not stop for the reductions. Each thread reads back what it
// copied itself: that takes no barrier.
#include <array>

#include "kernels/core/visit.h"
#include "kernels/device/stream.h"
#include "kernels/gpu/columns.h"
#include "kernels/gpu/gpu.h"
#include "kernels/gpu/grid.h"
#include "kernels/gpu/values.h"
#include "kernels/gpu/vector.h"
#include "kernels/norm/norm.h"
#include "kernels/norm/norm_gpu.h"
#include "kernels/ptx/cp_async.h"

namespace orchard::GPU_NAMESPACE {
namespace {

template <class T>
struct GradientRows {
  const T* x;                      // [rows, cols], also d_y, d_sum, d_x
  const T* weight;                 // [cols]
  const float* mean = nullptr;     // [rows], LayerNorm's
  const float* inverse = nullptr;  // [rows]
  const T* d_y;
  const T* d_sum;             // or nullptr
  T* d_x;                     // may alias d_y
  float* partials = nullptr;  // [strips, d_weight | d_bias], or nullptr: not wanted
  std::int64_t rows;
  std::int64_t strip = 0;  // rows of a block
  int cols;
};

// The two halves of a row of partials; RMSNorm has only the first.
constexpr int halves(Norm norm) {
  return norm == Norm::layer ? 2 : 1;
}

// How many blocks an SM shall hold: three of four warps, with 168 registers a thread. LayerNorm needs a few
// more in its widest rows of that size; a block of 16 warps fills an SM with its shared memory.
constexpr int blocks_of_sm(Norm norm, int threads_per_row) {
  return threads_per_row > 128 ? 1 : norm == Norm::layer && threads_per_row == 128 ? 2 : 3;
}

// The row that is worked on and the next: two stages of a ring.
constexpr unsigned ring_stages = 2;

template <class T, int threads, int vectors>
struct BackwardStorage {
  static constexpr int groups = block_threads(threads) / threads;  // rows worked on at a time
  using Row = uint4[vectors][block_threads(threads)];
  struct Rows {
    Row x[ring_stages], d_y[ring_stages];
    Row d_sum;  // late enough with the row that is worked on: it is added last
  };
  RowSums<threads> sums;
  uint4 weight[vectors][threads];
  union {
    Rows rows;
    float share[groups][threads * vectors * per_vector<T>];  // when the rows are done
  };
};

// Adds the shares of the block's groups of threads and stores the sums, [cols].
template <class T, int threads, int vectors>
__device__ void store_share(const Floats<T> (&share)[vectors], int cols, float* out,
                            BackwardStorage<T, threads, vectors>& shared) {
  const int group = static_cast<int>(threadIdx.x) / threads;
  const int thread = static_cast<int>(threadIdx.x) % threads;
  __syncthreads();  // the last use of shared memory is over
#pragma unroll
  for (int v = 0; v < vectors; ++v) {
#pragma unroll
    for (int i = 0; i < per_vector<T>; ++i) {
      shared.share[group][(thread + v * threads) * per_vector<T> + i] = share[v].value[i];
    }
  }
  __syncthreads();
  for (int col = static_cast<int>(threadIdx.x); col < cols; col += block_threads(threads)) {
    float total = 0;
    for (int k = 0; k < shared.groups; ++k) total += shared.share[k][col];
    store(out + col, total);
  }
}

// The row's statistics, zero where there is no row.
struct RowStatistics {
  float mean, inverse;
};

template <Norm norm, class T>
__device__ RowStatistics statistics_of(const GradientRows<T>& op, int row, bool active) {
  return {norm == Norm::layer && active ? load(op.mean + row) : 0.0f,
          active ? load(op.inverse + row) : 0.0f};
}

template <Norm norm, class T, int threads, int vectors>
__global__ void __launch_bounds__(block_threads(threads), blocks_of_sm(norm, threads))
    norm_backward_rows(GradientRows<T> op) {
  auto& shared = shared_storage<BackwardStorage<T, threads, vectors>>();
  constexpr int groups = shared.groups, per = per_vector<T>;
  const int thread = static_cast<int>(threadIdx.x) % threads;
  const int group = static_cast<int>(threadIdx.x) / threads;
  const int length = op.cols / per;
  const auto cols = static_cast<float>(op.cols);
  const auto at = [&](int v) { return thread + v * threads; };

  Floats<T> d_weight[vectors], d_bias[vectors];
#pragma unroll
  for (int v = 0; v < vectors; ++v) {
    const auto* const weights = reinterpret_cast<const uint4*>(op.weight);
    if (group == 0) {
      store_shared(&shared.weight[v][thread],
                   at(v) < length ? load_readonly(weights + at(v)) : uint4{});
    }
#pragma unroll
    for (int i = 0; i < per; ++i) d_weight[v].value[i] = d_bias[v].value[i] = 0;
  }

  const auto rows = static_cast<int>(op.rows), strip = static_cast<int>(op.strip);
  const int first = static_cast<int>(blockIdx.x) * strip;
  const int end = rows - first > strip ? first + strip : rows;
  // A copy of an operand's row, which the thread reads back with `own`. What lies outside of the row, or
  // has no row, arrives as zeros.
  using Row = BackwardStorage<T, threads, vectors>::Row;
  const auto fetch = [&](const T* operand, int row, Row& to) {
#pragma unroll
    for (int v = 0; v < vectors; ++v) {
      const bool inside = row < end && at(v) < length;
      const std::int64_t from = inside ? std::int64_t{row} * length + at(v) : 0;
      cp_async_16(&to[v][threadIdx.x], reinterpret_cast<const uint4*>(operand) + from,
                  inside ? 16 : 0);
    }
  };
  const auto own = [&](const Row& row, int v) {
    return unpack<T>(load_shared(&row[v][threadIdx.x]));
  };
  const auto weight = [&](int v) { return unpack<T>(load_shared(&shared.weight[v][thread])); };
  const auto fetch_inputs = [&](int row, unsigned stage) {
    fetch(op.x, row, shared.rows.x[stage]);
    fetch(op.d_y, row, shared.rows.d_y[stage]);
    cp_async_commit();
  };
  fetch_inputs(first + group, 0);
  RowStatistics next = statistics_of<norm>(op, first + group, first + group < end);
  if constexpr (groups > 1) __syncthreads();  // the first group has brought the weight for all
  unsigned stage = 0;
  int buffer = 0;
  // All groups take as many turns, for the barriers in row_sum; what has no row works on zeros.
  for (int turn = first; turn < end; turn += groups, stage ^= 1) {
    const int row = turn + group;
    const auto [mean, r] = next;
    if (op.d_sum != nullptr) fetch(op.d_sum, row, shared.rows.d_sum);
    cp_async_commit();
    fetch_inputs(row + groups, stage ^ 1);
    next = statistics_of<norm>(op, row + groups, row + groups < end);
    cp_async_wait<2>();
    const Row &x = shared.rows.x[stage], &d_y = shared.rows.d_y[stage];

    float total = 0, dot = 0;  // d_y is zero where there is no element, and so are its products
#pragma unroll
    for (int v = 0; v < vectors; ++v) {
      const Floats<T> inputs = own(x, v), gradients = own(d_y, v);
      const Floats<T> scales = weight(v);
#pragma unroll
      for (int i = 0; i < per; ++i) {
        const float normalised = (inputs.value[i] - mean) * r;
        const float g = gradients.value[i] * scales.value[i];
        dot = fmaf(g, normalised, dot);
        d_weight[v].value[i] = fmaf(gradients.value[i], normalised, d_weight[v].value[i]);
        if constexpr (norm == Norm::layer) {
          total += g;
          d_bias[v].value[i] += gradients.value[i];
        }
      }
    }
    const float mean_dot = row_sum<threads>(dot, shared.sums, buffer) / cols;
    buffer ^= 1;
    float mean_g = 0;
    if constexpr (norm == Norm::layer) {
      mean_g = row_sum<threads>(total, shared.sums, buffer) / cols;
      buffer ^= 1;
    }

    cp_async_wait<1>();
    auto* const d_x_row = reinterpret_cast<uint4*>(op.d_x) + std::int64_t{row} * length;
#pragma unroll
    for (int v = 0; v < vectors; ++v) {
      if (row >= end || at(v) >= length) continue;
      const Floats<T> inputs = own(x, v), gradients = own(d_y, v);
      const Floats<T> scales = weight(v);
      Floats<T> out;
#pragma unroll
      for (int i = 0; i < per; ++i) {
        const float normalised = (inputs.value[i] - mean) * r;
        const float g = gradients.value[i] * scales.value[i];
        out.value[i] = r * fmaf(-normalised, mean_dot, g - mean_g);
      }
      if (op.d_sum != nullptr) {
        const Floats<T> others = own(shared.rows.d_sum, v);
#pragma unroll
        for (int i = 0; i < per; ++i) out.value[i] += others.value[i];
      }
      store(d_x_row + at(v), pack(out));
    }
  }
  cp_async_wait_all();

  if (op.partials == nullptr) return;
  float* const partial =
      op.partials + static_cast<std::int64_t>(blockIdx.x) * halves(norm) * op.cols;
  store_share<T, threads, vectors>(d_weight, op.cols, partial, shared);
  if constexpr (norm == Norm::layer) {
    store_share<T, threads, vectors>(d_bias, op.cols, partial + op.cols, shared);
  }
}

// Rows of any length and alignment: a block reads its row element by element, twice.
template <Norm norm, class T>
__global__ void __launch_bounds__(any_row_threads) norm_backward_any_row(GradientRows<T> op) {
  auto& sums = shared_storage<RowSums<any_row_threads>>();
  const std::int64_t row = blockIdx.x, begin = row * op.cols;
  const auto cols = static_cast<float>(op.cols);
  const float r = load(op.inverse + row);
  const float mean = norm == Norm::layer ? load(op.mean + row) : 0.0f;
  const auto normalised = [&](int i) { return (widen(load(op.x + begin + i)) - mean) * r; };
  const auto gradient = [&](int i) {
    return widen(load(op.d_y + begin + i)) * widen(load(op.weight + i));
  };
  float total = 0, dot = 0;
  for (int i = static_cast<int>(threadIdx.x); i < op.cols; i += any_row_threads) {
    total += gradient(i);
    dot = fmaf(gradient(i), normalised(i), dot);
  }
  const float mean_dot = row_sum<any_row_threads>(dot, sums, 0) / cols;
  const float mean_g = norm == Norm::layer ? row_sum<any_row_threads>(total, sums, 1) / cols : 0.0f;
  for (int i = static_cast<int>(threadIdx.x); i < op.cols; i += any_row_threads) {
    float out = r * fmaf(-normalised(i), mean_dot, gradient(i) - mean_g);
    if (op.d_sum != nullptr) out += widen(load(op.d_sum + begin + i));
    store(op.d_x + begin + i, narrow<T>(out));
  }
}

struct WeightTerms {
  float weight, bias;
};

// The gradients of weight and bias for those rows.
template <Norm norm, class T>
__global__ void __launch_bounds__(column_threads, column_blocks)
    norm_weight_strips(GradientRows<T> op, ColumnTiling tiling) {
  const Columns<1> columns(tiling);
  Values<1> d_weight{}, d_bias{};
  columns.for_each_row(
      [&](std::int64_t row) {
        const std::int64_t at = row * op.cols + columns.col;
        const float mean = norm == Norm::layer ? load(op.mean + row) : 0.0f;
        const float d_y = widen(load(op.d_y + at));
        return WeightTerms{d_y * (widen(load(op.x + at)) - mean) * load(op.inverse + row), d_y};
      },
      [&](std::int64_t, const WeightTerms& terms) {
        d_weight[0] += terms.weight;
        d_bias[0] += terms.bias;
      });
  float* const partial =
      op.partials + static_cast<std::int64_t>(blockIdx.y) * halves(norm) * op.cols;
  columns.sum_columns(d_weight, [&](std::int64_t col, float sum) { store(partial + col, sum); });
  if constexpr (norm == Norm::layer) {
    columns.sum_columns(d_bias,
                        [&](std::int64_t col, float sum) { store(partial + op.cols + col, sum); });
  }
}

// Adds a column of partials to d_weight or, in the second half, to d_bias.
struct AddToGradients {
  float* d_weight;
  float* d_bias;
  std::int64_t cols;
  __device__ void operator()(std::int64_t, std::int64_t col, float sum) const {
    float* const total = col < cols ? d_weight + col : d_bias + (col - cols);
    store(total, load(total) + sum);
  }
};

template <class T>
struct Variant : RowVariant<void (*)(GradientRows<T>)> {};

template <Norm norm, class T, int threads, int vectors>
constexpr Variant<T> variant() {
  return {{threads * vectors, threads, sizeof(BackwardStorage<T, threads, vectors>),
           norm_backward_rows<norm, T, threads, vectors>}};
}

// The first that holds the row is taken. Shared memory: 42 to 48 KB for each four warps of the first three,
// 96 KB for the last.
template <Norm norm, class T>
constexpr std::array<Variant<T>, 4> variants() {
  return {{
      variant<norm, T, 32, 4>(),   //   2 KB: hidden 768 and 1024 in bf16
      variant<norm, T, 64, 4>(),   //   4 KB: hidden 1280 and 2048 in bf16, 1024 in f32
      variant<norm, T, 128, 4>(),  //   8 KB: hidden 3072 and 4096 in bf16
      variant<norm, T, 512, 2>(),  //  16 KB: hidden 7168 in bf16, 4096 in f32
  }};
}

template <Norm norm>
float* partials_of(Stream& stream, const AddToGradients& totals, std::int64_t strips) {
  if (totals.d_weight == nullptr) return nullptr;
  return reinterpret_cast<float*>(stream.workspace(
      static_cast<std::size_t>(strips * halves(norm) * totals.cols) * sizeof(float)));
}

template <Norm norm>
void add_partials(Stream& stream, const float* partials, std::int64_t strips,
                  const AddToGradients& totals) {
  if (partials == nullptr) return;
  launch_sum_partials(stream, partials, 1, strips, halves(norm) * totals.cols, totals);
}

template <Norm norm, class T>
void run_variant(Stream& stream, const Variant<T>& v, GradientRows<T> op,
                 const AddToGradients& totals) {
  const int block = block_threads(v.threads_per_row);
  const std::int64_t groups = block / v.threads_per_row;
  // Of at least 8 turns, and no more than 128 SMs hold at once: none of them is left for a second wave,
  // which would find most SMs of a large GPU idle.
  const std::int64_t most = 128 * blocks_of_sm(norm, v.threads_per_row);
  const std::int64_t turns = std::max<std::int64_t>(8, ceil_div(op.rows, groups * most));
  op.strip = turns * groups;
  const std::int64_t strips = (op.rows + op.strip - 1) / op.strip;
  op.partials = partials_of<norm>(stream, totals, strips);
  launch(stream,
         {.kernel = "norm_backward_rows",
          .grid = {static_cast<unsigned>(strips)},
          .block = {static_cast<unsigned>(block)},
          .shared_bytes = v.shared_bytes},
         v.kernel, op);
  add_partials<norm>(stream, op.partials, strips, totals);
}

template <Norm norm, class T>
void run_any_row(Stream& stream, GradientRows<T> op, const AddToGradients& totals) {
  const ColumnTiling tiling = tile_columns(1, op.rows, op.cols, 1);
  op.partials = partials_of<norm>(stream, totals, tiling.strips);
  if (op.partials != nullptr) {  // before d_x, which may overwrite d_y
    launch(stream,
           {.kernel = "norm_weight_strips",
            .grid = tiling.grid(),
            .block = {column_threads},
            .shared_bytes = sizeof(ColumnSums<column_threads, 1>)},
           norm_weight_strips<norm, T>, op, tiling);
    add_partials<norm>(stream, op.partials, tiling.strips, totals);
  }
  launch(stream,
         {.kernel = "norm_backward_any_row",
          .grid = {static_cast<unsigned>(op.rows)},
          .block = {any_row_threads},
          .shared_bytes = sizeof(RowSums<any_row_threads>)},
         norm_backward_any_row<norm, T>, op);
}

template <Norm norm, class T>
void norm_backward(Stream& stream, const GradientRows<T>& op, const AddToGradients& totals) {
  if (op.rows == 0 || op.cols == 0) return;
  if (op.cols % per_vector<T> == 0 &&
      all_aligned(16, {op.x, op.weight, op.d_y, op.d_sum, op.d_x})) {
    for (const Variant<T>& v : variants<norm, T>()) {
      if (op.cols / per_vector<T> <= v.capacity) return run_variant<norm>(stream, v, op, totals);
    }
  }
  run_any_row<norm>(stream, op, totals);
}

// What the two operations have in common.
template <class T, class Operation>
GradientRows<T> rows_of(const Operation& op) {
  require_countable(op.x);
  return {.x = op.x.template data<T>(),
          .weight = op.weight.template data<T>(),
          .d_y = op.d_y.template data<T>(),
          .d_sum = op.d_sum.template data<T>(),
          .d_x = op.d_x.template data<T>(),
          .rows = op.x.dim(0),
          .cols = static_cast<int>(op.x.dim(1))};
}

}  // namespace

void register_norm_backward(OperationTable& table) {
  table.add<RmsNormBackward>([](Stream& stream, const RmsNormBackward& op) {
    visit_float(op.x.dtype(), [&]<class T>(T) {
      GradientRows<T> rows = rows_of<T>(op);
      rows.inverse = op.inverse_rms.data<float>();
      norm_backward<Norm::rms>(stream, rows, {op.d_weight.data<float>(), nullptr, rows.cols});
    });
  });
  table.add<LayerNormBackward>([](Stream& stream, const LayerNormBackward& op) {
    visit_float(op.x.dtype(), [&]<class T>(T) {
      GradientRows<T> rows = rows_of<T>(op);
      rows.mean = op.mean.data<float>();
      rows.inverse = op.inverse_std.data<float>();
      norm_backward<Norm::layer>(stream, rows,
                                 {op.d_weight.data<float>(), op.d_bias.data<float>(), rows.cols});
    });
  });
}

}  // namespace orchard::GPU_NAMESPACE
