// Sums, conversions and reductions on GPUs, from sm_80 on. One or two FLOPs an element; bound by HBM
// bandwidth. Bytes for elements of e bytes: Add 3·e (2·e where b repeats: it stays in the caches),
// Convert 6 (f32 <-> bf16), Scale 2·e, ColumnSum e, SumOfSquares 4.
#include <cstdint>

#include "kernels/core/visit.h"
#include "kernels/device/stream.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/gpu/columns.h"
#include "kernels/gpu/pieces.h"
#include "kernels/gpu/pointwise.h"
#include "kernels/gpu/register.h"

namespace orchard::GPU_NAMESPACE {
namespace {

// i modulo period; in 32 bits, where a division costs a quarter, when both fit.
__device__ std::int64_t remainder_of(std::int64_t i, std::int64_t period) {
  if ((i | period) >> 32 == 0) {
    return static_cast<unsigned>(i) % static_cast<unsigned>(period);
  }
  return i % period;
}

template <class T>
struct AddElements {
  static constexpr int width = per_vector<T>;
  const T* a;
  const T* b;
  T* y;
  std::int64_t period;  // elements of b

  template <int n>
  struct Terms {
    Values<n> a, b;
  };
  template <int n>
  __device__ Terms<n> read(std::int64_t i) const {
    return {load_values<n>(a + i), load_values<n>(b + (i < period ? i : remainder_of(i, period)))};
  }
  template <int n>
  __device__ void write(std::int64_t i, const Terms<n>& in) const {
    store_values(y + i, map([](float left, float right) { return left + right; }, in.a, in.b));
  }
};

template <class T>
void add(Stream& stream, const Add& op) {
  const AddElements<T> body{op.a.data<T>(), op.b.data<T>(), op.y.data<T>(), op.b.numel()};
  const bool vectors = body.period % body.width == 0 && all_aligned(16, {body.a, body.b, body.y});
  launch_pointwise(stream, "add", body, {.count = op.a.numel(), .vectors = vectors});
}

template <class From, class To>
struct ConvertElements {
  static constexpr int width = std::min(per_vector<From>, per_vector<To>);
  const From* x;
  To* y;

  template <int n>
  __device__ Values<n> read(std::int64_t i) const {
    return load_values<n>(x + i);
  }
  template <int n>
  __device__ void write(std::int64_t i, const Values<n>& in) const {
    store_values(y + i, in);
  }
};

template <class From, class To>
void convert(Stream& stream, const Convert& op) {
  const ConvertElements<From, To> body{op.x.data<From>(), op.y.data<To>()};
  constexpr auto width = static_cast<std::size_t>(body.width);
  const bool vectors =
      all_aligned(width * sizeof(From), {body.x}) && all_aligned(width * sizeof(To), {body.y});
  launch_pointwise(stream, "convert", body, {.count = op.x.numel(), .vectors = vectors});
}

void run_convert(Stream& stream, const Convert& op) {
  if (op.x.dtype() == op.y.dtype()) {
    if (op.x.raw() != op.y.raw()) stream.copy(op.y, op.x);
  } else if (op.x.dtype() == DType::f32) {
    convert<float, bf16>(stream, op);
  } else {
    convert<bf16, float>(stream, op);
  }
}

template <class T>
struct ScaleElements {
  static constexpr int width = per_vector<T>;
  T* x;
  float factor;

  template <int n>
  __device__ Values<n> read(std::int64_t i) const {
    return load_values<n>(x + i);
  }
  template <int n>
  __device__ void write(std::int64_t i, const Values<n>& in) const {
    store_values(x + i, map([&](float value) { return value * factor; }, in));
  }
};

template <class T>
void scale(Stream& stream, const Scale& op) {
  const ScaleElements<T> body{op.x.data<T>(), op.factor};
  launch_pointwise(stream, "scale", body,
                   {.count = op.x.numel(), .vectors = all_aligned(16, {body.x})});
}

template <class T, int width>
__global__ void __launch_bounds__(column_threads, column_blocks)
    column_sum_strips(const T* x, ColumnTiling tiling, float* partials) {
  const Columns<width> columns(tiling);
  Values<width> total{};
  columns.for_each_row(
      [&](std::int64_t row) { return load_piece<width>(x + row * tiling.cols + columns.col); },
      [&](std::int64_t, const Piece<T, width>& held) {
        const Values<width> in = values_of(held);
#pragma unroll
        for (int i = 0; i < width; ++i) total[i] += in[i];
      });
  columns.sum_columns(
      total, [&](std::int64_t col, float sum) { store(partial_of(partials, tiling, col), sum); });
}

template <class T, int width>
void column_sum_by(Stream& stream, const ColumnSum& op) {
  const ColumnTiling tiling = tile_columns(1, op.x.dim(0), op.x.dim(1), width);
  if (tiling.empty()) return;
  auto* const partials = reinterpret_cast<float*>(stream.workspace(
      static_cast<std::size_t>(tiling.partial_rows() * tiling.cols) * sizeof(float)));
  launch(stream,
         {.kernel = "column_sum_strips",
          .grid = tiling.grid(),
          .block = {column_threads},
          .shared_bytes = sizeof(ColumnSums<column_threads, width>)},
         column_sum_strips<T, width>, op.x.data<T>(), tiling, partials);
  launch_sum_partials(stream, partials, 1, tiling.strips, tiling.cols,
                      AddToTotal{op.y.data<float>()});
}

template <class T>
void column_sum(Stream& stream, const ColumnSum& op) {
  const bool vectors = op.x.dim(1) % per_vector<T> == 0 && all_aligned(16, {op.x.raw()});
  (vectors ? column_sum_by<T, per_vector<T>> : column_sum_by<T, 1>)(stream, op);
}

// In fp64: a sum over millions of gradients must neither lose digits nor overflow. An SM converts
// and adds 16 or more elements a cycle; memory brings it 4.
struct SquaredElements {
  static constexpr int width = per_vector<float>;
  const float* x;
  double total = 0;

  template <int n>
  __device__ Values<n> read(std::int64_t i) const {
    return load_values<n>(x + i);
  }
  template <int n>
  __device__ void write(std::int64_t, const Values<n>& in) {
#pragma unroll
    for (int k = 0; k < n; ++k) {
      const double value = in[k];
      total = fma(value, value, total);
    }
  }
};

struct StoreTotal {
  float* result;
  __device__ void operator()(double total) const { store(result, static_cast<float>(total)); }
};

void sum_of_squares(Stream& stream, const SumOfSquares& op) {
  const SquaredElements body{op.x.data<float>()};
  const SumChunks<SquaredElements> chunks(op.x.numel());
  auto* const partials = reinterpret_cast<double*>(stream.workspace(chunks.size_bytes()));
  launch_pointwise_sum(stream, "squares", body,
                       {.count = op.x.numel(), .vectors = all_aligned(16, {body.x})}, chunks,
                       partials);
  launch_final_sum(stream, partials, chunks.count, StoreTotal{op.result.data<float>()});
}

}  // namespace

void register_elementwise(OperationTable& table) {
  table.add<Add>([](Stream& stream, const Add& op) {
    visit_float(op.a.dtype(), [&]<class T>(T) { add<T>(stream, op); });
  });
  table.add<Convert>(run_convert);
  table.add<Scale>([](Stream& stream, const Scale& op) {
    visit_float(op.x.dtype(), [&]<class T>(T) { scale<T>(stream, op); });
  });
  table.add<ColumnSum>([](Stream& stream, const ColumnSum& op) {
    visit_float(op.x.dtype(), [&]<class T>(T) { column_sum<T>(stream, op); });
  });
  table.add<SumOfSquares>(sum_of_squares);
}

}  // namespace orchard::GPU_NAMESPACE
