// The second launch of a product in slices of k.
//
// Bytes: 4·slices·m·n read, from L2 as a rule, and c once. FLOPs: one a float. Bound: L2 bandwidth, and
// latency where c is small: a thread adds four columns, with eight slices in flight.
#include "kernels/gemm/split_k.h"
#include "kernels/gpu/grid.h"

namespace orchard::GPU_NAMESPACE {
namespace {

constexpr int threads = 128;
constexpr int in_flight = 8;

template <class T>
__global__ void __launch_bounds__(threads)
    gemm_add_slices(const float* sums, int slices, int m, int n, Epilogue<T> out) {
  const int quads = tiles_in(n, 4);  // of a row
  const std::int64_t at = std::int64_t{blockIdx.x} * threads + threadIdx.x;
  const std::int64_t row = at / quads;
  if (row >= m) return;
  const int col = static_cast<int>(at % quads) * 4;
  const float* const first = sums + row * n + col;
  const std::int64_t slice_size = std::int64_t{m} * n;
  const auto read = [&](int slice) {
    const float* const from = first + slice * slice_size;
    if (n % 4 == 0) return load_quad(from);
    Quad some{};
    for (int i = 0; i < 4; ++i) {
      if (col + i < n) some.value[i] = load(from + i);
    }
    return some;
  };

  Quad total{};
  for (int slice = 0; slice < slices; slice += in_flight) {
    Quad held[in_flight];
#pragma unroll
    for (int i = 0; i < in_flight; ++i) held[i] = slice + i < slices ? read(slice + i) : Quad{};
#pragma unroll
    for (int i = 0; i < in_flight; ++i) {
      for (int j = 0; j < 4; ++j) total.value[j] += held[i].value[j];
    }
  }
  finish_sums(out, row * n, col, n, total);
}

}  // namespace

template <class T>
void add_slices(Stream& stream, const float* sums, const DenseSchedule& schedule,
                const Epilogue<T>& out) {
  const std::int64_t quads = std::int64_t{schedule.m} * tiles_in(schedule.n, 4);
  launch(stream,
         {.kernel = "gemm_add_slices",
          .grid = {blocks_for("gemm_add_slices", quads, threads)},
          .block = {threads}},
         gemm_add_slices<T>, sums, schedule.parts, schedule.m, schedule.n, out);
}

template void add_slices(Stream&, const float*, const DenseSchedule&, const Epilogue<float>&);
template void add_slices(Stream&, const float*, const DenseSchedule&, const Epilogue<bf16>&);

}  // namespace orchard::GPU_NAMESPACE
