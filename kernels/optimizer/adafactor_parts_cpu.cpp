// AdaFactor on the CPU, in the three parts between which ranks add up what they measured. Each part
// reads the gradient once; the header has bytes and formulas. Bound by memory.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/optimizer/adafactor_parts_cpu.cpp"
#include "hwy/foreach_target.h"  // compiles this file once per instruction set
#include "hwy/highway.h"
//
#include <algorithm>
#include <cmath>

#include "kernels/cpu/reduction.h"
#include "kernels/device/device.h"
#include "kernels/optimizer/adafactor-inl.h"
#include "kernels/optimizer/optimizer_cpu.h"

HWY_BEFORE_NAMESPACE();
namespace orchard::cpu::HWY_NAMESPACE {

// Adds one row's g² + ε to `columns` and returns their sum.
HWY_INLINE float add_squares(const ScaledGradient& gradient, std::int64_t row, std::int64_t cols,
                             float* columns) {
  Vector total = zero();
  for_each_vector(cols, [&](std::int64_t i, std::int64_t n) HWY_ATTR {
    const Vector g = gradient(row * cols + i, n);
    const Vector square = hn::MulAdd(g, g, set(regulariser));
    total = hn::Add(total, first_lanes(square, n));
    store(hn::Add(load(columns + i, n), square), columns + i, n);
  });
  return sum(total);
}

void adafactor_sums(Stream& stream, const AdaFactorSums& op) {
  const ScaledGradient gradient(op);
  const std::int64_t cols = op.gradients.dim(1);
  float* const row_sums = op.row_sums.data<float>();
  stream.fill_zero(op.col_sums);
  sum_over_rows(stream, op.gradients.dim(0), op.col_sums,
                [&](std::int64_t begin, std::int64_t end, float* columns) {
                  for (std::int64_t row = begin; row < end; ++row)
                    row_sums[row] = add_squares(gradient, row, cols, columns);
                });
}

// The factors of g in the raw update of a factored block: u = g · row_factor · column_factor.
class Factors {
 public:
  // `memory` has room for cols floats.
  Factors(ConstTensor v_row, ConstTensor v_col, std::int64_t first_col, std::int64_t cols,
          float* memory)
      : v_row_(v_row.data<float>()), columns_(memory) {
    const auto* const v = v_col.data<float>();
    double total = 0;
    for (std::int64_t col = 0; col < v_col.dim(0); ++col) total += v[col];
    mean_ = static_cast<float>(total / static_cast<double>(v_col.dim(0)));
    for (std::int64_t col = 0; col < cols; ++col)
      columns_[col] = 1.0f / std::sqrt(v[first_col + col]);
  }

  float of_row(std::int64_t row) const { return 1.0f / std::sqrt(v_row_[row] / mean_); }
  const float* of_columns() const { return columns_; }

 private:
  const float* v_row_;
  float* columns_;
  float mean_ = 0;
};

void update_averages(const Averaging& average, Tensor averages, ConstTensor sums,
                     std::int64_t count) {
  float* const v = averages.data<float>();
  const auto* const s = sums.data<float>();
  for (std::int64_t i = 0; i < averages.numel(); ++i)
    v[i] = average(v[i], s[i] / static_cast<float>(count));
}

double measure_factored(Stream& stream, const AdaFactorMeasure& op) {
  const ScaledGradient gradient(op);
  const Averaging average(op.step);
  update_averages(average, op.v_row, op.row_sums, op.v_col.dim(0));
  update_averages(average, op.v_col, op.col_sums, op.rows);
  const std::int64_t rows = op.gradients.dim(0), cols = op.gradients.dim(1);
  const RowBlocks blocks = row_blocks(rows);
  const auto partial_bytes = static_cast<std::size_t>(blocks.count) * sizeof(double);
  std::byte* const memory =
      stream.workspace(partial_bytes + static_cast<std::size_t>(cols) * sizeof(float));
  const Factors factors(op.v_row, op.v_col, op.first_col, cols,
                        reinterpret_cast<float*>(memory + partial_bytes));
  return sum_over_blocks(rows, blocks.rows, reinterpret_cast<double*>(memory),
                         [&](std::int64_t begin, std::int64_t end) {
                           double total = 0;
                           for (std::int64_t row = begin; row < end; ++row) {
                             Vector squares = zero();
                             for_each_vector(cols, [&](std::int64_t i, std::int64_t n) HWY_ATTR {
                               const Vector u = hn::Mul(gradient(row * cols + i, n),
                                                        load(factors.of_columns() + i, n));
                               squares = hn::MulAdd(u, u, squares);
                             });
                             const double factor = factors.of_row(row);
                             total += factor * factor * sum(squares);
                           }
                           return total;
                         });
}

double measure_full(Stream& stream, const AdaFactorMeasure& op) {
  constexpr std::int64_t block = 16384;
  const std::int64_t size = op.gradients.numel();
  float* const v = op.v.data<float>();
  const ScaledGradient gradient(op);
  const Averaging average(op.step);
  auto* const partials = reinterpret_cast<double*>(
      stream.workspace(static_cast<std::size_t>((size + block - 1) / block) * sizeof(double)));
  return sum_over_blocks(size, block, partials, [&](std::int64_t begin, std::int64_t end) HWY_ATTR {
    Vector squares = zero();
    for_each_vector(end - begin, [&](std::int64_t i, std::int64_t n) HWY_ATTR {
      const Vector g = gradient(begin + i, n);
      const Vector square = hn::MulAdd(g, g, set(regulariser));
      const Vector v_new =
          hn::MulAdd(load(v + begin + i, n), set(average.keep), hn::Mul(square, set(average.rest)));
      store(v_new, v + begin + i, n);
      squares = hn::Add(squares, hn::Div(hn::Mul(g, g), v_new));
    });
    return static_cast<double>(sum(squares));
  });
}

void adafactor_measure(Stream& stream, const AdaFactorMeasure& op) {
  if (!ScaledGradient(op).is_usable()) return;
  const double squares = op.v ? measure_full(stream, op) : measure_factored(stream, op);
  *op.squares.data<float>() = static_cast<float>(squares);
}

void adafactor_apply(Stream& stream, const AdaFactorApply& op) {
  const ScaledGradient gradient(op);
  if (op.weights.numel() == 0 || !gradient.is_usable()) return;
  const float lr = clipped_lr(op, *op.squares.data<float>(), op.count);
  if (op.v) {
    const auto* const v = op.v.data<float>();
    parallel_vectors(op.weights.numel(), [&](std::int64_t i, std::int64_t n) HWY_ATTR {
      apply(op, i, n, hn::Div(gradient(i, n), hn::Sqrt(load(v + i, n))), lr);
    });
    return;
  }
  const std::int64_t rows = op.weights.dim(0), cols = op.weights.dim(1);
  const Factors factors(
      op.v_row, op.v_col, op.first_col, cols,
      reinterpret_cast<float*>(stream.workspace(static_cast<std::size_t>(cols) * sizeof(float))));
  parallel_for(rows, 16, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      const Vector factor = set(factors.of_row(row));
      for_each_vector(cols, [&](std::int64_t i, std::int64_t n) HWY_ATTR {
        const std::int64_t at = row * cols + i;
        const Vector u =
            hn::Mul(hn::Mul(gradient(at, n), factor), load(factors.of_columns() + i, n));
        apply(op, at, n, u, lr);
      });
    }
  });
}

}  // namespace orchard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace orchard::cpu {

HWY_EXPORT(adafactor_sums);
HWY_EXPORT(adafactor_measure);
HWY_EXPORT(adafactor_apply);

void register_adafactor_parts(OperationTable& table) {
  table.add<AdaFactorSums>([](Stream& s, const AdaFactorSums& op) {
    HWY_DYNAMIC_DISPATCH(adafactor_sums)(s, op);
  });
  table.add<AdaFactorMeasure>([](Stream& s, const AdaFactorMeasure& op) {
    HWY_DYNAMIC_DISPATCH(adafactor_measure)(s, op);
  });
  table.add<AdaFactorApply>([](Stream& s, const AdaFactorApply& op) {
    HWY_DYNAMIC_DISPATCH(adafactor_apply)(s, op);
  });
}

}  // namespace orchard::cpu
#endif  // HWY_ONCE
