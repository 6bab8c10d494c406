// AdaFactor on the CPU. Clipping by the rms of the whole update forces one pass that only measures
// it, and the factored statistics must be complete before that: factored reads the gradient three
// times, 20 bytes an element (22 with the bf16 copy) and about 12 FLOPs; unfactored twice, 28 bytes
// (30) and about 15 FLOPs. The update itself is never stored: workspace holds one row of column
// factors and the partial sums. Bound by memory.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/optimizer/adafactor_cpu.cpp"
#include "hwy/foreach_target.h"  // compiles this file once per instruction set
#include "hwy/highway.h"
//
#include <algorithm>
#include <cmath>

#include "kernels/cpu/reduction.h"
#include "kernels/device/device.h"
#include "kernels/optimizer/adafactor-inl.h"
#include "kernels/optimizer/optimizer.h"
#include "kernels/optimizer/optimizer_cpu.h"

HWY_BEFORE_NAMESPACE();
namespace orchard::cpu::HWY_NAMESPACE {

// One step of a factored block; the three passes in their order.
class Factored {
 public:
  Factored(Stream& stream, const AdaFactor& op)
      : op_(op),
        gradient_(op),
        rows_(op.weights.dim(0)),
        cols_(op.weights.dim(1)),
        blocks_(row_blocks(rows_)),
        sums_(rows_, cols_) {
    const auto block_bytes = static_cast<std::size_t>(blocks_.count) * sizeof(double);
    const auto row_bytes = static_cast<std::size_t>(cols_) * sizeof(float);
    std::byte* const memory = stream.workspace(sums_.size_bytes() + block_bytes + row_bytes);
    partial_memory_ = memory;
    block_squares_ = reinterpret_cast<double*>(memory + sums_.size_bytes());
    column_factors_ = reinterpret_cast<float*>(memory + sums_.size_bytes() + block_bytes);
  }

  void run() {
    collect();
    update_statistics();
    const double squares = sum_over_blocks(
        rows_, blocks_.rows, block_squares_,
        [&](std::int64_t begin, std::int64_t end) { return squares_of(begin, end); });
    const float lr = clipped_lr(op_, squares, op_.weights.numel());
    parallel_for(rows_, 16,
                 [&](std::int64_t begin, std::int64_t end) { update_rows(begin, end, lr); });
  }

 private:
  float row_factor(std::int64_t row) const {
    return 1.0f / std::sqrt(op_.v_row.data<float>()[row] / mean_row_);
  }

  // Pass 1: v_row, and the sums of squares of each column.
  void collect() {
    const Averaging average(op_.step);
    float* const v_row = op_.v_row.data<float>();
    sums_.collect(partial_memory_, [&](std::int64_t begin, std::int64_t end, float* columns) {
      for (std::int64_t row = begin; row < end; ++row) {
        const float mean = collect_row(row, columns) / static_cast<float>(cols_);
        v_row[row] = average(v_row[row], mean);
      }
    });
  }

  float collect_row(std::int64_t row, float* columns) const {
    Vector total = zero();
    for_each_vector(cols_, [&](std::int64_t i, std::int64_t n) HWY_ATTR {
      const Vector g = gradient_(row * cols_ + i, n);
      const Vector square = hn::MulAdd(g, g, set(regulariser));
      total = hn::Add(total, first_lanes(square, n));
      store(hn::Add(load(columns + i, n), square), columns + i, n);
    });
    return sum(total);
  }

  // v_col, the mean of v_row, and the factor of each column.
  void update_statistics() {
    const Averaging average(op_.step);
    float* const v_col = op_.v_col.data<float>();
    std::fill_n(column_factors_, cols_, 0.0f);
    sums_.add_to(column_factors_, 0, cols_);
    for (std::int64_t col = 0; col < cols_; ++col) {
      const float mean = column_factors_[col] / static_cast<float>(rows_);
      v_col[col] = average(v_col[col], mean);
      column_factors_[col] = 1.0f / std::sqrt(v_col[col]);
    }
    double total = 0;
    for (std::int64_t row = 0; row < rows_; ++row) total += op_.v_row.data<float>()[row];
    mean_row_ = static_cast<float>(total / static_cast<double>(rows_));
  }

  // Pass 2: Σ u² over rows.
  double squares_of(std::int64_t begin, std::int64_t end) const {
    double total = 0;
    for (std::int64_t row = begin; row < end; ++row) {
      Vector squares = zero();
      for_each_vector(cols_, [&](std::int64_t i, std::int64_t n) HWY_ATTR {
        const Vector u = hn::Mul(gradient_(row * cols_ + i, n), load(column_factors_ + i, n));
        squares = hn::MulAdd(u, u, squares);
      });
      const double factor = row_factor(row);
      total += factor * factor * sum(squares);
    }
    return total;
  }

  // Pass 3: the weights.
  void update_rows(std::int64_t begin, std::int64_t end, float lr) const {
    for (std::int64_t row = begin; row < end; ++row) {
      const Vector factor = set(row_factor(row));
      for_each_vector(cols_, [&](std::int64_t i, std::int64_t n) HWY_ATTR {
        const std::int64_t at = row * cols_ + i;
        apply(op_, at, n, hn::Mul(hn::Mul(gradient_(at, n), factor), load(column_factors_ + i, n)),
              lr);
      });
    }
  }

  const AdaFactor& op_;
  ScaledGradient gradient_;
  std::int64_t rows_, cols_;
  RowBlocks blocks_;
  PartialSums sums_;
  std::byte* partial_memory_;
  double* block_squares_;
  float* column_factors_;  // [cols]
  float mean_row_ = 0;
};

// One step of a block with a second moment per element.
void full_step(Stream& stream, const AdaFactor& op) {
  constexpr std::int64_t block = 16384;
  const std::int64_t size = op.weights.numel();
  float* const v = op.v.data<float>();
  const ScaledGradient gradient(op);
  const Averaging average(op.step);
  auto* const partials = reinterpret_cast<double*>(
      stream.workspace(static_cast<std::size_t>((size + block - 1) / block) * sizeof(double)));
  const auto update_statistics = [&](std::int64_t begin, std::int64_t end) HWY_ATTR {
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
  };
  const float lr = clipped_lr(op, sum_over_blocks(size, block, partials, update_statistics), size);
  parallel_vectors(size, [&](std::int64_t i, std::int64_t n) HWY_ATTR {
    apply(op, i, n, hn::Div(gradient(i, n), hn::Sqrt(load(v + i, n))), lr);
  });
}

void adafactor(Stream& stream, const AdaFactor& op) {
  if (op.weights.numel() == 0 || !ScaledGradient(op).is_usable()) return;
  if (op.v) {
    full_step(stream, op);
  } else {
    Factored(stream, op).run();
  }
}

}  // namespace orchard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace orchard::cpu {

HWY_EXPORT(adafactor);

void register_adafactor(OperationTable& table) {
  table.add<AdaFactor>([](Stream& s, const AdaFactor& op) {
    HWY_DYNAMIC_DISPATCH(adafactor)(s, op);
  });
}

}  // namespace orchard::cpu
#endif  // HWY_ONCE
