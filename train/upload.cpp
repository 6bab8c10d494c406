#include "train/upload.h"

#include <algorithm>

#include "kernels/device/device.h"
#include "kernels/elementwise/elementwise.h"

namespace orchard {

DeviceBatch BatchUploader::counts(const MicroBatch& batch) const {
  DeviceBatch out{.rows = batch.sequences * batch.length, .sequences = batch.sequences};
  out.targets = std::ranges::count_if(batch.targets, [](std::int32_t t) { return t >= 0; });
  out.tiles = batch.tiles;
  out.tower_rows = batch.tiles * (config_.vision.patches() + 1);
  return out;
}

DeviceBatch BatchUploader::upload(Stream& stream, Arena& arena, const MicroBatch& batch,
                                  PictureContent pictures) {
  DeviceBatch out = counts(batch);
  const std::int64_t rows = out.rows;
  require(static_cast<std::int64_t>(batch.sources.size()) == rows,
          "a micro-batch of {} x {} rows has {} sources", batch.sequences, batch.length,
          batch.sources.size());
  const auto copy = [&](const std::vector<std::int32_t>& values) -> ConstTensor {
    const Shape shape{static_cast<std::int64_t>(values.size())};
    const Tensor tensor = arena.allocate(DType::i32, shape);
    stream.copy(tensor, ConstTensor(values.data(), DType::i32, shape, DeviceKind::cpu));
    return tensor;
  };
  sequence_offsets_.clear();
  for (std::int64_t s = 0; s <= batch.sequences; ++s) {
    sequence_offsets_.push_back(static_cast<std::int32_t>(s * batch.length));
  }
  target_rows_.clear();
  target_ids_.clear();
  for (std::int64_t r = 0; r < rows; ++r) {
    const std::int32_t target = batch.targets[static_cast<std::size_t>(r)];
    if (target < 0) continue;
    target_rows_.push_back(static_cast<std::int32_t>(r));
    target_ids_.push_back(target);
  }
  const auto padded = static_cast<std::size_t>((out.targets + target_multiple - 1) /
                                               target_multiple * target_multiple);
  target_rows_.resize(padded, -1);
  target_ids_.resize(padded, -1);

  out.sources = copy(batch.sources);
  out.positions = copy(batch.positions);
  out.document_offsets = copy(batch.document_offsets);
  out.sequence_offsets = copy(sequence_offsets_);
  out.real_rows = copy(batch.real_rows);
  out.target_rows = copy(target_rows_);
  out.target_ids = copy(target_ids_);

  if (batch.tiles == 0) return out;
  tile_offsets_.clear();
  for (std::int64_t t = 0; t <= batch.tiles; ++t) {
    tile_offsets_.push_back(static_cast<std::int32_t>(t * (config_.vision.patches() + 1)));
  }
  out.tile_offsets = copy(tile_offsets_);
  if (pictures == PictureContent::absent) return out;
  const Shape shape{batch.tiles, config_.vision.patches(), config_.vision.patch_values()};
  require(std::ssize(batch.patches) == shape.numel(),
          "a micro-batch of {} tiles has {} values of patches, not {}", batch.tiles,
          batch.patches.size(), shape.numel());
  const Tensor pixels = arena.allocate(DType::f32, shape);
  stream.copy(pixels, ConstTensor(batch.patches.data(), DType::f32, shape, DeviceKind::cpu));
  out.patches = pixels;
  if (dtype_ != DType::f32) {
    const Tensor narrow = arena.allocate(dtype_, shape);
    run(stream, Convert{.x = pixels, .y = narrow});
    out.patches = narrow;
  }
  return out;
}

}  // namespace orchard
