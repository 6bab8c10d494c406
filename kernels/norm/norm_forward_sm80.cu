// RMSNorm and LayerNorm forward on GPUs, from sm_80 on: sum = x + delta (if given), then
//   RMSNorm    y = sum · r · weight, r = rsqrt(mean(sum²) + epsilon)
//   LayerNorm  y = (sum - mean) · r · weight + bias, r = rsqrt(mean((sum - mean)²) + epsilon)
//
// Bytes: 2·e per element, 4·e with delta, for elements of e bytes; weight and bias stay in the
// caches. FLOPs: 4 to 8 per element. Bound: HBM bandwidth, at 1 to 3 FLOP per byte in bf16.
//
// A row is read once: it stays in registers between the statistics and the output. All its loads
// are 16 bytes a thread and are issued before the first use, because what a GPU needs to run at its
// bandwidth is bytes in flight: latency × bandwidth, 11 KB per SM on an A100 (600 ns × 2.0 TB/s /
// 108 SMs), 18 KB on an H100 (700 ns × 3.35 TB/s / 132). Statistics are fp32.
#include <array>

#include "kernels/core/visit.h"
#include "kernels/device/stream.h"
#include "kernels/gpu/gpu.h"
#include "kernels/gpu/values.h"
#include "kernels/gpu/vector.h"
#include "kernels/norm/norm.h"
#include "kernels/norm/norm_gpu.h"

namespace orchard::GPU_NAMESPACE {
namespace {

template <class T>
struct Rows {
  const T* x;                // [rows, cols], also delta, sum, y
  const T* delta;            // or nullptr
  const T* weight;           // [cols]
  const T* bias = nullptr;   // [cols], LayerNorm's
  T* sum;                    // or nullptr
  T* y;                      // may alias x
  float* mean = nullptr;     // [rows], LayerNorm's
  float* inverse = nullptr;  // [rows], of the rms or of the deviation
  std::int64_t rows;
  int cols;
  float epsilon;
};

// A row in registers: `threads` threads hold `vectors` 16-byte vectors each, those beyond the row
// zero. Needs cols to be a multiple of a vector and all rows aligned to 16 bytes.
template <Norm norm, class T, int threads, int vectors>
__global__ void __launch_bounds__(block_threads(threads)) norm_rows(Rows<T> rows) {
  constexpr int rows_per_block = block_threads(threads) / threads;
  const int thread = static_cast<int>(threadIdx.x) % threads;
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * rows_per_block +
                           static_cast<int>(threadIdx.x) / threads;
  // Whole warps leave, and only where a row is one warp's: no barrier follows.
  if (row >= rows.rows) return;
  const int length = rows.cols / per_vector<T>;
  const std::int64_t begin = row * length;
  const auto at = [&](int v) { return thread + v * threads; };

  uint4 held[vectors];
  const auto* const x = reinterpret_cast<const uint4*>(rows.x) + begin;
#pragma unroll
  for (int v = 0; v < vectors; ++v) held[v] = at(v) < length ? load(x + at(v)) : uint4{};

  if (rows.delta != nullptr) {
    const auto* const delta = reinterpret_cast<const uint4*>(rows.delta) + begin;
    auto* const sum = reinterpret_cast<uint4*>(rows.sum) + begin;
    // All loads before the first store: the compiler may not move a load above a store that could
    // alias it.
    uint4 added[vectors];
#pragma unroll
    for (int v = 0; v < vectors; ++v) added[v] = at(v) < length ? load(delta + at(v)) : uint4{};
#pragma unroll
    for (int v = 0; v < vectors; ++v) {
      Floats<T> terms = unpack<T>(held[v]);
      const Floats<T> others = unpack<T>(added[v]);
#pragma unroll
      for (int i = 0; i < per_vector<T>; ++i) terms.value[i] += others.value[i];
      held[v] = pack(terms);  // rounded, as backward will see it
      if (at(v) < length) store(sum + at(v), held[v]);
    }
  }

  // Issued before the reduction, whose shuffles hide the latency.
  uint4 weight[vectors];
  const auto* const weights = reinterpret_cast<const uint4*>(rows.weight);
#pragma unroll
  for (int v = 0; v < vectors; ++v) {
    weight[v] = at(v) < length ? load_readonly(weights + at(v)) : uint4{};
  }

  auto& sums = shared_storage<RowSums<threads>>();
  const auto cols = static_cast<float>(rows.cols);
  float mean = 0;
  if constexpr (norm == Norm::layer) {
    float total = 0;
#pragma unroll
    for (int v = 0; v < vectors; ++v) {
      const Floats<T> values = unpack<T>(held[v]);
#pragma unroll
      for (int i = 0; i < per_vector<T>; ++i) total += values.value[i];
    }
    mean = row_sum<threads>(total, sums, 1) / cols;
    if (thread == 0) store(rows.mean + row, mean);
  }
  float squares = 0;
#pragma unroll
  for (int v = 0; v < vectors; ++v) {
    // What lies beyond the row is zero, and must not count as zero - mean.
    if (norm == Norm::layer && at(v) >= length) continue;
    const Floats<T> values = unpack<T>(held[v]);
#pragma unroll
    for (int i = 0; i < per_vector<T>; ++i) {
      const float centred = values.value[i] - mean;
      squares = fmaf(centred, centred, squares);
    }
  }
  const float inverse = rsqrtf(row_sum<threads>(squares, sums, 0) / cols + rows.epsilon);
  if (thread == 0) store(rows.inverse + row, inverse);

  auto* const y = reinterpret_cast<uint4*>(rows.y) + begin;
  const auto* const biases = reinterpret_cast<const uint4*>(rows.bias);
#pragma unroll
  for (int v = 0; v < vectors; ++v) {
    if (at(v) >= length) continue;
    Floats<T> values = unpack<T>(held[v]);
    const Floats<T> scales = unpack<T>(weight[v]);
    if constexpr (norm == Norm::layer) {
      const Floats<T> bias = unpack<T>(load_readonly(biases + at(v)));
#pragma unroll
      for (int i = 0; i < per_vector<T>; ++i) {
        values.value[i] = fmaf((values.value[i] - mean) * inverse, scales.value[i], bias.value[i]);
      }
    } else {
#pragma unroll
      for (int i = 0; i < per_vector<T>; ++i) values.value[i] *= inverse * scales.value[i];
    }
    store(y + at(v), pack(values));
  }
}

// A row of any length and alignment: a block reads it element by element, and again (from the L2
// cache) for each further pass. For shapes that no model of ours has.
template <Norm norm, class T>
__global__ void __launch_bounds__(any_row_threads) norm_any_row(Rows<T> rows) {
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * rows.cols;
  const int thread = static_cast<int>(threadIdx.x);
  auto& sums = shared_storage<RowSums<any_row_threads>>();
  const auto cols = static_cast<float>(rows.cols);
  const T* const input = rows.delta != nullptr ? rows.sum : rows.x;

  float total = 0;
  if (rows.delta != nullptr || norm == Norm::layer) {
    for (int i = thread; i < rows.cols; i += any_row_threads) {
      T value = load(rows.x + begin + i);
      if (rows.delta != nullptr) {
        value = narrow<T>(widen(value) + widen(load(rows.delta + begin + i)));
        store(rows.sum + begin + i, value);
      }
      total += widen(value);
    }
  }
  float mean = 0;
  if constexpr (norm == Norm::layer) {
    mean = row_sum<any_row_threads>(total, sums, 1) / cols;
    if (thread == 0) store(rows.mean + blockIdx.x, mean);
  }
  float squares = 0;
  for (int i = thread; i < rows.cols; i += any_row_threads) {
    const float centred = widen(load(input + begin + i)) - mean;
    squares = fmaf(centred, centred, squares);
  }
  const float inverse = rsqrtf(row_sum<any_row_threads>(squares, sums, 0) / cols + rows.epsilon);
  if (thread == 0) store(rows.inverse + blockIdx.x, inverse);

  for (int i = thread; i < rows.cols; i += any_row_threads) {
    const float normalised = (widen(load(input + begin + i)) - mean) * inverse;
    const float bias = norm == Norm::layer ? widen(load(rows.bias + i)) : 0.0f;
    store(rows.y + begin + i, narrow<T>(fmaf(normalised, widen(load(rows.weight + i)), bias)));
  }
}

template <class T>
using Variant = RowVariant<void (*)(Rows<T>)>;

template <Norm norm, class T, int threads, int vectors>
constexpr Variant<T> variant() {
  return {threads * vectors, threads, sizeof(RowSums<threads>),
          norm_rows<norm, T, threads, vectors>};
}

// The first that holds the row is taken. Up to 4 KB a row is one warp's: no barrier, and neighbours
// in the block run on while one waits. More than 8 vectors a thread would cost more registers
// (4 each for the row and for the weight) than bytes in flight are worth, so longer rows take more
// threads.
template <Norm norm, class T>
constexpr std::array<Variant<T>, 7> variants() {
  return {{
      variant<norm, T, 32, 1>(),   //   512 B: head dims
      variant<norm, T, 32, 2>(),   //   1 KB: hidden 512 in bf16
      variant<norm, T, 32, 4>(),   //   2 KB: hidden 768 and 1024 in bf16
      variant<norm, T, 32, 8>(),   //   4 KB: hidden 1280 and 2048 in bf16, 1024 in f32
      variant<norm, T, 128, 4>(),  //   8 KB: hidden 3072 and 4096 in bf16
      variant<norm, T, 256, 4>(),  //  16 KB: hidden 7168 in bf16, 4096 in f32
      variant<norm, T, 256, 8>(),  //  32 KB: hidden 7168 in f32
  }};
}

template <Norm norm, class T>
void launch_norm(Stream& stream, const Rows<T>& rows) {
  if (rows.rows == 0 || rows.cols == 0) return;
  if (rows.cols % per_vector<T> == 0 &&
      all_aligned(16, {rows.x, rows.delta, rows.weight, rows.bias, rows.sum, rows.y})) {
    for (const Variant<T>& v : variants<norm, T>()) {
      if (rows.cols / per_vector < T >> v.capacity) continue;
      const int block = block_threads(v.threads_per_row);
      const int rows_per_block = block / v.threads_per_row;
      launch(stream,
             {.kernel = "norm_rows",
              .grid = {static_cast<unsigned>((rows.rows + rows_per_block - 1) / rows_per_block)},
              .block = {static_cast<unsigned>(block)},
              .shared_bytes = v.shared_bytes},
             v.kernel, rows);
      return;
    }
  }
  launch(stream,
         {.kernel = "norm_any_row",
          .grid = {static_cast<unsigned>(rows.rows)},
          .block = {any_row_threads},
          .shared_bytes = sizeof(RowSums<any_row_threads>)},
         norm_any_row<norm, T>, rows);
}

// What the two operations have in common.
template <class T, class Operation>
Rows<T> rows_of(const Operation& op) {
  require_countable(op.x);
  return {.x = op.x.template data<T>(),
          .delta = op.delta.template data<T>(),
          .weight = op.weight.template data<T>(),
          .sum = op.sum.template data<T>(),
          .y = op.y.template data<T>(),
          .rows = op.x.dim(0),
          .cols = static_cast<int>(op.x.dim(1)),
          .epsilon = op.epsilon};
}

}  // namespace

void register_norm_forward(OperationTable& table) {
  table.add<RmsNormForward>([](Stream& stream, const RmsNormForward& op) {
    visit_float(op.x.dtype(), [&]<class T>(T) {
      Rows<T> rows = rows_of<T>(op);
      rows.inverse = op.inverse_rms.data<float>();
      launch_norm<Norm::rms>(stream, rows);
    });
  });
  table.add<LayerNormForward>([](Stream& stream, const LayerNormForward& op) {
    visit_float(op.x.dtype(), [&]<class T>(T) {
      Rows<T> rows = rows_of<T>(op);
      rows.bias = op.bias.data<T>();
      rows.mean = op.mean.data<float>();
      rows.inverse = op.inverse_std.data<float>();
      launch_norm<Norm::layer>(stream, rows);
    });
  });
}

}  // namespace orchard::GPU_NAMESPACE
