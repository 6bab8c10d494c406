// Stack-like memory for the tensors of one micro-batch.
//
// allocate() bumps a pointer; mark() and rewind() free everything allocated since, in the order of
// a stack. The first pass may run past the block: the arena then adds blocks. reset() frees all,
// and merges the blocks into one of the peak size, so that the second pass finds room and nothing
// grows any more. Work that is queued goes on with what was freed, and what comes next overwrites it
// in stream order.
#pragma once

#include <vector>

#include "kernels/device/device.h"

namespace orchard {

class Arena {
 public:
  struct Mark {
    std::size_t block = 0;
    std::size_t used = 0;
  };

  explicit Arena(Device& device, std::size_t initial_bytes = 0);

  // Uninitialised tensor, valid until a rewind to an earlier mark. Aligned to 256 bytes.
  Tensor allocate(DType dtype, Shape shape);

  Mark mark() const { return {current_, blocks_.empty() ? 0 : used_}; }
  void rewind(Mark mark);
  // Waits for the stream, that of all work on the arena, where blocks are merged.
  void reset(Stream& stream);

  std::size_t used_bytes() const { return before_current_ + used_; }
  std::size_t peak_bytes() const { return peak_; }
  // Blocks added since construction: constant once warm.
  std::int64_t growths() const { return growths_; }

 private:
  void add_block(std::size_t at_least);

  Device& device_;
  std::vector<Buffer> blocks_;
  std::size_t current_ = 0;         // index of the block in use
  std::size_t used_ = 0;            // bytes used in it
  std::size_t before_current_ = 0;  // bytes of all earlier blocks
  std::size_t peak_ = 0;
  std::int64_t growths_ = 0;
};

// Frees at scope exit what was allocated inside.
class ArenaScope {
 public:
  explicit ArenaScope(Arena& arena) : arena_(arena), mark_(arena.mark()) {}
  ~ArenaScope() { arena_.rewind(mark_); }
  ArenaScope(const ArenaScope&) = delete;
  ArenaScope& operator=(const ArenaScope&) = delete;

 private:
  Arena& arena_;
  Arena::Mark mark_;
};

}  // namespace orchard
