// Page-locked host memory from which small tables are copied to a device, so that the host waits for
// none of the copies, and need not keep the tables.
#pragma once

#include <cstdint>
#include <deque>
#include <span>

#include "kernels/device/arena.h"
#include "kernels/device/host_memory.h"

namespace orchard {

class TableStaging {
 public:
  // The device must outlive it.
  explicit TableStaging(Device& device) : device_(device) {}

  // All tables so far have been copied: the next ones use their memory again.
  void reset() { block_ = used_ = 0; }

  // i32 [size of the table], in the arena, in stream order; absent for an empty one. The table may go
  // at once. Memory grows to the most that was ever taken between two resets.
  ConstTensor load(Stream& stream, Arena& arena, std::span<const std::int32_t> table);

 private:
  std::span<std::int32_t> take(std::size_t count);

  static constexpr std::size_t block_size = 8192;  // numbers; larger tables have a block alone

  Device& device_;
  std::deque<HostVector<std::int32_t>> blocks_;
  std::size_t block_ = 0, used_ = 0;  // the block at hand, and how much of it is taken
};

}  // namespace orchard
