// AdaFactor on GPUs, from sm_80 on, in the three parts between which ranks add up what they measured.
// The passes are those of the whole block (kernels/optimizer/adafactor_gpu.h); each part reads the
// gradient once; the header has bytes and formulas. Bound: HBM bandwidth.
#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "kernels/device/scratch.h"
#include "kernels/device/stream.h"
#include "kernels/optimizer/adafactor_gpu.h"
#include "kernels/optimizer/optimizer.h"
#include "kernels/optimizer/optimizer_gpu.h"

namespace orchard::GPU_NAMESPACE {
namespace {

// Calls body with the elements of an access that all of these allow.
template <class Body>
void visit_width(std::int64_t cols, std::initializer_list<const void*> floats, const bf16* copy,
                 const Body& body) {
  constexpr int width = per_vector<float>;
  if (cols % width == 0 && all_aligned(16, floats) && all_aligned(8, {copy})) {
    body(std::integral_constant<int, width>{});
  } else {
    body(std::integral_constant<int, 1>{});
  }
}

struct StoreSum {
  float* sums;
  __device__ void operator()(std::int64_t, std::int64_t i, float sum) const {
    store(sums + i, sum);
  }
};

struct StoreTotal {
  float* total;
  __device__ void operator()(double sum) const { store(total, static_cast<float>(sum)); }
};

// ---- part 1 ------------------------------------------------------------------------------------

void adafactor_sums(Stream& stream, const AdaFactorSums& op) {
  const std::int64_t rows = op.gradients.dim(0), cols = op.gradients.dim(1);
  visit_width(cols, {op.gradients.raw()}, nullptr, [&](auto width) {
    const ColumnTiling tiling = tile_columns(1, rows, cols, width, heavy_column_blocks);
    ScratchLayout layout;
    const auto row_sums = layout.add<float>(tiling.tiles * rows);
    const auto column_sums = layout.add<float>(tiling.strips * cols);
    std::byte* const scratch = stream.workspace(layout.bytes());
    const Factored pass{.gradients = op.gradients.data<float>(),
                        .row_sums = row_sums.in(scratch),
                        .column_sums = column_sums.in(scratch),
                        .gradient_scale = op.gradient_scale.data<float>(),
                        .tiling = tiling};
    if (!tiling.empty()) launch_collect<width>(stream, pass);
    launch_sum_partials(stream, pass.row_sums, 1, tiling.tiles, rows,
                        StoreSum{op.row_sums.data<float>()});
    launch_sum_partials(stream, pass.column_sums, 1, tiling.strips, cols,
                        StoreSum{op.col_sums.data<float>()});
  });
}

// ---- part 2 ------------------------------------------------------------------------------------

// averages[i] takes in sums[i] / count.
void update_averages(Stream& stream, const AdaFactorMeasure& op, const Tensor& averages,
                     const ConstTensor& sums, std::int64_t count) {
  launch_sum_partials(stream, sums.data<float>(), 1, 1, averages.numel(),
                      UpdateStatistic{averages.data<float>(), static_cast<float>(count),
                                      Averaging(op.step), op.gradient_scale.data<float>()});
}

// 1 / mean(v_col), which is that of v_row over the rows of all ranks.
void store_inverse_mean(Stream& stream, const ConstTensor& v_col, float* inverse_mean) {
  launch_final_sum(stream, v_col.data<float>(), v_col.dim(0),
                   StoreInverseMean{inverse_mean, v_col.dim(0)});
}

void measure_factored(Stream& stream, const AdaFactorMeasure& op) {
  const std::int64_t rows = op.gradients.dim(0), cols = op.gradients.dim(1);
  update_averages(stream, op, op.v_row, op.row_sums, op.v_col.dim(0));
  update_averages(stream, op, op.v_col, op.col_sums, op.rows);
  const float* const v_col = op.v_col.data<float>() + op.first_col;
  visit_width(cols, {op.gradients.raw(), v_col}, nullptr, [&](auto width) {
    const ColumnTiling tiling = tile_columns(1, rows, cols, width, heavy_column_blocks);
    const std::int64_t blocks = std::int64_t{tiling.tiles} * tiling.strips;
    ScratchLayout layout;
    const auto squares = layout.add<double>(blocks);
    const auto inverse_mean = layout.add<float>(1);
    std::byte* const scratch = stream.workspace(layout.bytes());
    store_inverse_mean(stream, op.v_col, inverse_mean.in(scratch));
    const Factored pass{.gradients = op.gradients.data<float>(),
                        .v_row = op.v_row.data<float>(),
                        .v_col = v_col,
                        .update_squares = squares.in(scratch),
                        .inverse_mean = inverse_mean.in(scratch),
                        .gradient_scale = op.gradient_scale.data<float>(),
                        .tiling = tiling};
    if (!tiling.empty()) launch_measure<width>(stream, pass);
    launch_final_sum(stream, pass.update_squares, blocks, StoreTotal{op.squares.data<float>()});
  });
}

void measure_full(Stream& stream, const AdaFactorMeasure& op) {
  const std::int64_t size = op.gradients.numel();
  const SumChunks<FullStatistics> chunks(size);
  auto* const partials = reinterpret_cast<double*>(stream.workspace(chunks.size_bytes()));
  const FullStatistics statistics{op.gradients.data<float>(), op.v.data<float>(),
                                  op.gradient_scale.data<float>(), Averaging(op.step)};
  launch_pointwise_sum(
      stream, "adafactor_statistics", statistics,
      {.count = size, .vectors = all_aligned(16, {statistics.gradients, statistics.v})}, chunks,
      partials);
  launch_final_sum(stream, partials, chunks.count, StoreTotal{op.squares.data<float>()});
}

void adafactor_measure(Stream& stream, const AdaFactorMeasure& op) {
  (op.v ? measure_full : measure_factored)(stream, op);
}

// ---- part 3 ------------------------------------------------------------------------------------

void adafactor_apply(Stream& stream, const AdaFactorApply& op) {
  if (op.weights.numel() == 0) return;
  ScratchLayout layout;
  const auto inverse_mean = layout.add<float>(1), clipped_lr = layout.add<float>(1);
  std::byte* const scratch = stream.workspace(layout.bytes());
  launch_final_sum(stream, op.squares.data<float>(), 1,
                   StoreClippedLr{clipped_lr.in(scratch), op.lr, op.clip_threshold, op.count});
  const Weights weights{.weights = op.weights.data<float>(),
                        .copy = op.copy.data<bf16>(),
                        .weight_decay = op.weight_decay,
                        .clipped_lr = clipped_lr.in(scratch)};
  if (op.v) {
    const FullUpdate update{op.gradients.data<float>(), op.v.data<float>(),
                            op.gradient_scale.data<float>(), weights};
    launch_pointwise(stream, "adafactor_full_update", update,
                     {.count = op.weights.numel(),
                      .vectors = all_aligned(16, {update.gradients, update.v, weights.weights}) &&
                                 all_aligned(8, {weights.copy})});
    return;
  }
  const std::int64_t rows = op.weights.dim(0), cols = op.weights.dim(1);
  const float* const v_col = op.v_col.data<float>() + op.first_col;
  store_inverse_mean(stream, op.v_col, inverse_mean.in(scratch));
  visit_width(cols, {weights.weights, op.gradients.raw(), v_col}, weights.copy, [&](auto width) {
    launch_update<width>(stream,
                         {.gradients = op.gradients.data<float>(),
                          .v_row = op.v_row.data<float>(),
                          .v_col = v_col,
                          .inverse_mean = inverse_mean.in(scratch),
                          .gradient_scale = op.gradient_scale.data<float>(),
                          .weights = weights,
                          .tiling = tile_columns(1, rows, cols, width, heavy_column_blocks)});
  });
}

}  // namespace

void register_adafactor_parts(OperationTable& table) {
  table.add<AdaFactorSums>(adafactor_sums);
  table.add<AdaFactorMeasure>(adafactor_measure);
  table.add<AdaFactorApply>(adafactor_apply);
}

}  // namespace orchard::GPU_NAMESPACE
