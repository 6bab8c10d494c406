// Bytes: d_out and out once, four per row. Bound: HBM bandwidth, at half a FLOP per byte in bf16.
#include "kernels/attention/row_dots.h"
#include "kernels/device/stream.h"
#include "kernels/gpu/vector.h"
#include "kernels/gpu/warp.h"

namespace orchard::GPU_NAMESPACE {
namespace {

template <class T>
struct Rows {
  const T *d_out, *out;  // [rows, head_dim]
  float* dots;           // [rows]
  std::int64_t rows;
  int head_dim;
  int lanes = 32;  // of a row: a power of two
};

constexpr int threads = 256;

// A row is `lanes` neighbouring lanes', as many as it has vectors, up to a warp.
template <class T, class Access>
__global__ void __launch_bounds__(threads) attention_row_dots(Rows<T> rows) {
  constexpr int vector = std::is_same_v<Access, T> ? 1 : per_vector<T>;
  const int lane = static_cast<int>(threadIdx.x) & (rows.lanes - 1);
  const std::int64_t row = std::int64_t{blockIdx.x} * (threads / rows.lanes) +
                           static_cast<int>(threadIdx.x) / rows.lanes;
  const bool has_row = row < rows.rows;  // others stay for the shuffles
  const std::int64_t begin = row * rows.head_dim;
  float dot = 0;
  // All lanes take as many turns, so that they stay together in an unrolled loop.
  for (int first = 0; first < rows.head_dim; first += rows.lanes * vector) {
    const int i = first + lane * vector;
    if (!has_row || i >= rows.head_dim) continue;
    const auto read = [&](const T* from) {
      return load(reinterpret_cast<const Access*>(from + begin + i));
    };
    if constexpr (vector == 1) {
      dot = fmaf(widen(read(rows.d_out)), widen(read(rows.out)), dot);
    } else {
      const Floats<T> d_out = unpack<T>(read(rows.d_out)), out = unpack<T>(read(rows.out));
#pragma unroll
      for (int j = 0; j < vector; ++j) dot = fmaf(d_out.value[j], out.value[j], dot);
    }
  }
  dot = warp_sum(dot, rows.lanes);
  if (has_row && lane == 0) store(rows.dots + row, dot);
}

// A power of two that holds the row's vectors, or a warp.
int lanes_for(int vectors) {
  int lanes = 1;
  while (lanes < 32 && lanes < vectors) lanes *= 2;
  return lanes;
}

template <class T>
void launch_row_dots(Stream& stream, const AttentionBackward& op, float* dots) {
  Rows<T> rows{.d_out = op.d_out.data<T>(),
               .out = op.out.data<T>(),
               .dots = dots,
               .rows = op.q.dim(0) * op.q.dim(1),
               .head_dim = static_cast<int>(op.q.dim(2))};
  if (rows.rows == 0) return;
  const auto aligned = [](const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; };
  const bool vectors =
      rows.head_dim % per_vector<T> == 0 && aligned(rows.d_out) && aligned(rows.out);
  rows.lanes = lanes_for(rows.head_dim / (vectors ? per_vector<T> : 1));
  const std::int64_t rows_per_block = threads / rows.lanes;
  const std::int64_t blocks = (rows.rows + rows_per_block - 1) / rows_per_block;
  launch(
      stream,
      {.kernel = "attention_row_dots", .grid = {static_cast<unsigned>(blocks)}, .block = {threads}},
      vectors ? attention_row_dots<T, uint4> : attention_row_dots<T, T>, rows);
}

}  // namespace

const float* row_dots(Stream& stream, const AttentionBackward& op) {
  const std::int64_t rows = op.q.dim(0) * op.q.dim(1);
  require(rows < (std::int64_t{1} << 31), "AttentionBackward: q {} has more rows than a grid",
          op.q.shape());
  auto* const dots =
      reinterpret_cast<float*>(stream.workspace(static_cast<std::size_t>(rows) * sizeof(float)));
  (op.q.dtype() == DType::f32 ? launch_row_dots<float> : launch_row_dots<bf16>)(stream, op, dots);
  return dots;
}

}  // namespace orchard::GPU_NAMESPACE
