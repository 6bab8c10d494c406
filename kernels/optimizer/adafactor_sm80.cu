// AdaFactor on GPUs, from sm_80 on. Clipping by the rms of the whole update forces one pass that only
// measures it, and the factored statistics must be complete before that: factored reads the gradient
// three times, 20 bytes an element (22 with the bf16 copy) and about 12 FLOPs; unfactored twice, 28
// bytes (30) and about 15 FLOPs. Bound: HBM bandwidth.
//
// What one pass finds and the next needs stays on the device: the host never waits. Sums are cut by
// shape and added in a fixed order.
#include <cstdint>

#include "kernels/device/stream.h"
#include "kernels/optimizer/adafactor_gpu.h"
#include "kernels/optimizer/optimizer.h"
#include "kernels/optimizer/optimizer_gpu.h"

namespace orchard::GPU_NAMESPACE {
namespace {

StoreClippedLr clipping(const AdaFactor& op, float* clipped_lr) {
  return {clipped_lr, op.lr, op.clip_threshold, op.weights.numel()};
}

Weights weights_of(const AdaFactor& op, const float* clipped_lr) {
  return {.weights = op.weights.data<float>(),
          .copy = op.copy.data<bf16>(),
          .weight_decay = op.weight_decay,
          .clipped_lr = clipped_lr};
}

template <int width>
void factored_step(Stream& stream, const AdaFactor& op) {
  const std::int64_t rows = op.weights.dim(0), cols = op.weights.dim(1);
  const ColumnTiling tiling = tile_columns(1, rows, cols, width, heavy_column_blocks);
  const std::int64_t blocks = std::int64_t{tiling.tiles} * tiling.strips;
  const std::int64_t row_sums = tiling.tiles * rows, column_sums = tiling.strips * cols;
  std::byte* const memory =
      stream.workspace(static_cast<std::size_t>(blocks) * sizeof(double) +
                       static_cast<std::size_t>(row_sums + column_sums + 2) * sizeof(float));
  auto* const doubles = reinterpret_cast<double*>(memory);
  auto* const floats = reinterpret_cast<float*>(doubles + blocks);
  float* const v_row = op.v_row.data<float>();
  float* const v_col = op.v_col.data<float>();
  const float* const gradient_scale = op.gradient_scale.data<float>();
  float* const inverse_mean = floats;
  float* const clipped_lr = floats + 1;
  const Factored step{.gradients = op.gradients.data<float>(),
                      .v_row = v_row,
                      .v_col = v_col,
                      .row_sums = floats + 2,
                      .column_sums = floats + 2 + row_sums,
                      .update_squares = doubles,
                      .inverse_mean = inverse_mean,
                      .gradient_scale = gradient_scale,
                      .weights = weights_of(op, clipped_lr),
                      .tiling = tiling};
  const Averaging average(op.step);
  launch_collect<width>(stream, step);
  launch_sum_partials(stream, step.row_sums, 1, tiling.tiles, rows,
                      UpdateStatistic{v_row, static_cast<float>(cols), average, gradient_scale});
  launch_sum_partials(stream, step.column_sums, 1, tiling.strips, cols,
                      UpdateStatistic{v_col, static_cast<float>(rows), average, gradient_scale});
  launch_final_sum(stream, v_row, rows, StoreInverseMean{inverse_mean, rows});
  launch_measure<width>(stream, step);
  launch_final_sum(stream, step.update_squares, blocks, clipping(op, clipped_lr));
  launch_update<width>(stream, step);
}

void full_step(Stream& stream, const AdaFactor& op) {
  const std::int64_t size = op.weights.numel();
  const SumChunks<FullStatistics> chunks(size);
  auto* const partials =
      reinterpret_cast<double*>(stream.workspace(chunks.size_bytes() + sizeof(float)));
  auto* const clipped_lr = reinterpret_cast<float*>(partials + chunks.count);
  const FullStatistics statistics{op.gradients.data<float>(), op.v.data<float>(),
                                  op.gradient_scale.data<float>(), Averaging(op.step)};
  const FullUpdate update{op.gradients.data<float>(), op.v.data<float>(),
                          op.gradient_scale.data<float>(), weights_of(op, clipped_lr)};
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
  register_adafactor_parts(table);
}

}  // namespace orchard::GPU_NAMESPACE
