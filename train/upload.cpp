#include "train/upload.h"

#include <algorithm>

#include "kernels/device/device.h"
#include "kernels/elementwise/elementwise.h"

namespace orchard {
namespace {

// Lists of integers that are staged one behind the other, and then copied each to a tensor of its
// own: adding one may move those before.
class StagedLists {
 public:
  explicit StagedLists(HostVector<std::int32_t>& staging) : staging_(staging) { staging.clear(); }

  // Begins the list of `tensor`, which `add` makes longer.
  void begin(ConstTensor& tensor) { lists_.push_back({&tensor, staging_.size()}); }
  void add(std::int64_t value) { staging_.push_back(static_cast<std::int32_t>(value)); }
  void pad(std::int64_t multiple, std::int32_t value) {
    while ((staging_.size() - lists_.back().begin) % static_cast<std::size_t>(multiple) != 0)
      staging_.push_back(value);
  }
  void add_list(ConstTensor& tensor, const std::vector<std::int32_t>& values) {
    begin(tensor);
    staging_.insert(staging_.end(), values.begin(), values.end());
  }
  // 0, step, ..., count · step.
  void add_multiples(ConstTensor& tensor, std::int64_t count, std::int64_t step) {
    begin(tensor);
    for (std::int64_t i = 0; i <= count; ++i) add(i * step);
  }

  void copy(Stream& stream, Arena& arena) const {
    for (std::size_t i = 0; i < lists_.size(); ++i) {
      const std::size_t begin = lists_[i].begin;
      const std::size_t end = i + 1 < lists_.size() ? lists_[i + 1].begin : staging_.size();
      const Shape shape{static_cast<std::int64_t>(end - begin)};
      const Tensor tensor = arena.allocate(DType::i32, shape);
      stream.copy(tensor, ConstTensor(staging_.data() + begin, DType::i32, shape, DeviceKind::cpu));
      *lists_[i].tensor = tensor;
    }
  }

 private:
  struct List {
    ConstTensor* tensor;
    std::size_t begin;
  };

  HostVector<std::int32_t>& staging_;
  std::vector<List> lists_;
};

}  // namespace

DeviceBatch BatchUploader::counts(const MicroBatch& batch) const {
  DeviceBatch out{.rows = batch.sequences * batch.length, .sequences = batch.sequences};
  out.targets = std::ranges::count_if(batch.targets, [](std::int32_t t) { return t >= 0; });
  out.tiles = batch.tiles;
  out.tower_rows = batch.tiles * (config_.vision.patches() + 1);
  return out;
}

void BatchUploader::upload_lists(Stream& stream, Arena& arena, const MicroBatch& batch,
                                 Staging& staging, DeviceBatch& out) const {
  StagedLists lists(staging.integers);
  lists.add_list(out.sources, batch.sources);
  lists.add_list(out.positions, batch.positions);
  lists.add_list(out.document_offsets, batch.document_offsets);
  if (shapes_ == UploadShapes::repeating)
    lists.pad(document_multiple, batch.document_offsets.back());
  lists.add_list(out.real_rows, batch.real_rows);
  lists.add_multiples(out.sequence_offsets, batch.sequences, batch.length);
  lists.begin(out.target_rows);
  for (std::int64_t row = 0; row < out.rows; ++row)
    if (batch.targets[static_cast<std::size_t>(row)] >= 0) lists.add(row);
  lists.pad(target_multiple, -1);
  lists.begin(out.target_ids);
  for (const std::int32_t target : batch.targets)
    if (target >= 0) lists.add(target);
  lists.pad(target_multiple, -1);
  if (batch.tiles > 0)
    lists.add_multiples(out.tile_offsets, batch.tiles, config_.vision.patches() + 1);
  lists.copy(stream, arena);
}

ConstTensor BatchUploader::upload_patches(Stream& stream, Arena& arena, const MicroBatch& batch,
                                          Staging& staging) const {
  const Shape shape{batch.tiles, config_.vision.patches(), config_.vision.patch_values()};
  require(std::ssize(batch.patches) == shape.numel(),
          "a micro-batch of {} tiles has {} values of patches, not {}", batch.tiles,
          batch.patches.size(), shape.numel());
  const float* source = batch.patches.data();
  if (device_.kind() != DeviceKind::cpu) {
    staging.patches.assign(batch.patches.begin(), batch.patches.end());
    source = staging.patches.data();
  }
  const Tensor pixels = arena.allocate(DType::f32, shape);
  stream.copy(pixels, ConstTensor(source, DType::f32, shape, DeviceKind::cpu));
  if (dtype_ == DType::f32) return pixels;
  const Tensor narrow = arena.allocate(dtype_, shape);
  run(stream, Convert{.x = pixels, .y = narrow});
  return narrow;
}

DeviceBatch BatchUploader::upload(Stream& stream, Arena& arena, const MicroBatch& batch,
                                  PictureContent pictures) {
  DeviceBatch out = counts(batch);
  require(std::ssize(batch.sources) == out.rows && std::ssize(batch.targets) == out.rows,
          "a micro-batch of {} x {} rows has {} sources and {} targets", batch.sequences,
          batch.length, batch.sources.size(), batch.targets.size());
  if (used_ == staging_.size()) staging_.emplace_back(device_);
  Staging& staging = staging_[used_++];
  upload_lists(stream, arena, batch, staging, out);
  if (batch.tiles > 0 && pictures == PictureContent::whole)
    out.patches = upload_patches(stream, arena, batch, staging);
  return out;
}

}  // namespace orchard
