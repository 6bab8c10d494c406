#include "parallel/table_staging.h"

#include <algorithm>

namespace orchard {

std::span<std::int32_t> TableStaging::take(std::size_t count) {
  while (block_ < blocks_.size() && blocks_[block_].size() - used_ < count) {
    ++block_;
    used_ = 0;
  }
  if (block_ == blocks_.size())
    blocks_.emplace_back(std::max(count, block_size), HostAllocator<std::int32_t>(device_));
  const std::span<std::int32_t> taken = std::span(blocks_[block_]).subspan(used_, count);
  used_ += count;
  return taken;
}

ConstTensor TableStaging::load(Stream& stream, Arena& arena, std::span<const std::int32_t> table) {
  if (table.empty()) return {};
  const Shape shape{std::ssize(table)};
  const std::span<std::int32_t> staged = take(table.size());
  std::ranges::copy(table, staged.begin());
  const Tensor loaded = arena.allocate(DType::i32, shape);
  stream.copy(loaded, ConstTensor(staged.data(), DType::i32, shape, DeviceKind::cpu));
  return loaded;
}

}  // namespace orchard
