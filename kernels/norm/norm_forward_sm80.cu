// RMSNorm forward on GPUs, from sm_80 on: sum = x + delta (if given), y = sum · r · weight with
// r = rsqrt(mean(sum²) + epsilon).
//
// Bytes: 2·e per element, 4·e with delta, for elements of e bytes; the weight stays in the caches.
// FLOPs: 4 per element, 5 with delta. Bound: HBM bandwidth, at 1 to 2.5 FLOP per byte in bf16.
//
// A row is read once: it stays in registers between the sum of squares and the output. All its
// loads are 16 bytes a thread and are issued before the first use, because what a GPU needs to run
// at its bandwidth is bytes in flight: latency × bandwidth, 11 KB per SM on an A100 (600 ns ×
// 2.0 TB/s / 108 SMs), 18 KB on an H100 (700 ns × 3.35 TB/s / 132). Statistics are fp32.
#include <array>

#include "kernels/core/dtype.h"
#include "kernels/device/device.h"
#include "kernels/gpu/gpu.h"
#include "kernels/gpu/register.h"
#include "kernels/gpu/vector.h"
#include "kernels/gpu/warp.h"
#include "kernels/norm/norm.h"

namespace orchard::GPU_NAMESPACE {
namespace {

template <class T>
struct Rows {
  const T* x;          // [rows, cols], also delta, sum, y
  const T* delta;      // or nullptr
  const T* weight;     // [cols]
  T* sum;              // or nullptr
  T* y;                // may alias x
  float* inverse_rms;  // [rows]
  std::int64_t rows;
  int cols;
  float epsilon;
};

// Threads of a block: one row's, but at least four warps, so that the 32 blocks an SM can hold
// do not limit how many warps it holds.
constexpr int block_threads(int threads_per_row) {
  return threads_per_row < 128 ? 128 : threads_per_row;
}

template <int threads>
struct WarpSums {
  float value[threads / 32];
};

constexpr std::size_t shared_bytes(int threads_per_row) {
  return threads_per_row > 32 ? static_cast<std::size_t>(threads_per_row) / 32 * sizeof(float) : 0;
}

// The sum over the threads of a row, in each of them. Call once per kernel: nothing guards the
// shared memory against a second use.
template <int threads>
__device__ float row_sum(float value) {
  value = warp_sum(value);
  if constexpr (threads > 32) {
    auto& sums = shared_storage<WarpSums<threads>>();
    if (threadIdx.x % 32 == 0) sums.value[threadIdx.x / 32] = value;
    __syncthreads();
    value = 0;
    for (int warp = 0; warp < threads / 32; ++warp) value += sums.value[warp];
  }
  return value;
}

// A row in registers: `threads` threads hold `vectors` 16-byte vectors each, those beyond the row
// zero. Needs cols to be a multiple of a vector and all rows aligned to 16 bytes.
template <class T, int threads, int vectors>
__global__ void __launch_bounds__(block_threads(threads)) rms_norm_rows(Rows<T> rows) {
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

  float squares = 0;
#pragma unroll
  for (int v = 0; v < vectors; ++v) {
    const Floats<T> values = unpack<T>(held[v]);
#pragma unroll
    for (int i = 0; i < per_vector<T>; ++i) {
      squares = fmaf(values.value[i], values.value[i], squares);
    }
  }
  const float mean = row_sum<threads>(squares) / static_cast<float>(rows.cols);
  const float inverse_rms = rsqrtf(mean + rows.epsilon);
  if (thread == 0) store(rows.inverse_rms + row, inverse_rms);

  auto* const y = reinterpret_cast<uint4*>(rows.y) + begin;
#pragma unroll
  for (int v = 0; v < vectors; ++v) {
    Floats<T> values = unpack<T>(held[v]);
    const Floats<T> scales = unpack<T>(weight[v]);
#pragma unroll
    for (int i = 0; i < per_vector<T>; ++i) values.value[i] *= inverse_rms * scales.value[i];
    if (at(v) < length) store(y + at(v), pack(values));
  }
}

// A row of any length and alignment: a block reads it element by element, and again (from the L2
// cache) for the output. For shapes that no model of ours has.
constexpr int any_row_threads = 256;

template <class T>
__global__ void __launch_bounds__(any_row_threads) rms_norm_any_row(Rows<T> rows) {
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * rows.cols;
  const int thread = static_cast<int>(threadIdx.x);
  float squares = 0;
  for (int i = thread; i < rows.cols; i += any_row_threads) {
    T value = load(rows.x + begin + i);
    if (rows.delta != nullptr) {
      value = narrow<T>(widen(value) + widen(load(rows.delta + begin + i)));
      store(rows.sum + begin + i, value);
    }
    squares = fmaf(widen(value), widen(value), squares);
  }
  const float mean = row_sum<any_row_threads>(squares) / static_cast<float>(rows.cols);
  const float inverse_rms = rsqrtf(mean + rows.epsilon);
  if (thread == 0) store(rows.inverse_rms + blockIdx.x, inverse_rms);

  const T* const input = rows.delta != nullptr ? rows.sum : rows.x;
  for (int i = thread; i < rows.cols; i += any_row_threads) {
    const float scale = inverse_rms * widen(load(rows.weight + i));
    store(rows.y + begin + i, narrow<T>(widen(load(input + begin + i)) * scale));
  }
}

template <class T>
struct Variant {
  int capacity;  // vectors of the longest row
  int threads_per_row;
  void (*kernel)(Rows<T>);
};

template <class T, int threads, int vectors>
constexpr Variant<T> variant() {
  return {threads * vectors, threads, rms_norm_rows<T, threads, vectors>};
}

// The first that holds the row is taken. Up to 4 KB a row is one warp's: no barrier, and neighbours
// in the block run on while one waits. More than 8 vectors a thread would cost more registers
// (4 each for the row and for the weight) than bytes in flight are worth, so longer rows take more
// threads.
template <class T>
constexpr std::array<Variant<T>, 7> variants() {
  return {{
      variant<T, 32, 1>(),   //   512 B: head dims
      variant<T, 32, 2>(),   //   1 KB: hidden 512 in bf16
      variant<T, 32, 4>(),   //   2 KB: hidden 768 and 1024 in bf16
      variant<T, 32, 8>(),   //   4 KB: hidden 2048 in bf16, 1024 in f32
      variant<T, 128, 4>(),  //   8 KB: hidden 3072 and 4096 in bf16
      variant<T, 256, 4>(),  //  16 KB: hidden 7168 in bf16, 4096 in f32
      variant<T, 256, 8>(),  //  32 KB: hidden 7168 in f32
  }};
}

template <class T>
void rms_norm_forward(Stream& stream, const RmsNormForward& op) {
  const std::int64_t count = op.x.dim(0);
  const std::int64_t cols = op.x.dim(1);
  if (count == 0 || cols == 0) return;
  require(count < (std::int64_t{1} << 31) && cols < (std::int64_t{1} << 31),
          "RmsNormForward: x {} has more rows or columns than the GPU kernel counts (2^31)",
          op.x.shape());
  const Rows<T> rows{.x = op.x.data<T>(),
                     .delta = op.delta.data<T>(),
                     .weight = op.weight.data<T>(),
                     .sum = op.sum.data<T>(),
                     .y = op.y.data<T>(),
                     .inverse_rms = op.inverse_rms.data<float>(),
                     .rows = count,
                     .cols = static_cast<int>(cols),
                     .epsilon = op.epsilon};
  const auto aligned = [](const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; };
  if (cols % per_vector<T> == 0 && aligned(rows.x) && aligned(rows.delta) && aligned(rows.weight) &&
      aligned(rows.sum) && aligned(rows.y)) {
    for (const Variant<T>& v : variants<T>()) {
      if (cols / per_vector < T >> v.capacity) continue;
      const int block = block_threads(v.threads_per_row);
      const int rows_per_block = block / v.threads_per_row;
      launch(stream,
             {.kernel = "rms_norm_rows",
              .grid = {static_cast<unsigned>((count + rows_per_block - 1) / rows_per_block)},
              .block = {static_cast<unsigned>(block)},
              .shared_bytes = shared_bytes(v.threads_per_row)},
             v.kernel, rows);
      return;
    }
  }
  launch(stream,
         {.kernel = "rms_norm_any_row",
          .grid = {static_cast<unsigned>(count)},
          .block = {any_row_threads},
          .shared_bytes = shared_bytes(any_row_threads)},
         rms_norm_any_row<T>, rows);
}

}  // namespace

void register_norm(OperationTable& table) {
  table.add<RmsNormForward>([](Stream& stream, const RmsNormForward& op) {
    (op.x.dtype() == DType::f32 ? rms_norm_forward<float> : rms_norm_forward<bf16>)(stream, op);
  });
}

}  // namespace orchard::GPU_NAMESPACE
