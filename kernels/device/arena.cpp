#include "kernels/device/arena.h"

#include <algorithm>

namespace orchard {
namespace {

constexpr std::size_t alignment = 256;
constexpr std::size_t smallest_block = std::size_t{1} << 20;

std::size_t round_up(std::size_t bytes) {
  return (bytes + alignment - 1) / alignment * alignment;
}

}  // namespace

Arena::Arena(Device& device, std::size_t initial_bytes) : device_(device) {
  if (initial_bytes) blocks_.emplace_back(device, round_up(initial_bytes));
}

void Arena::add_block(std::size_t at_least) {
  // Doubling keeps the number of blocks, and so of allocations before the first reset, logarithmic.
  const std::size_t last = blocks_.empty() ? 0 : blocks_.back().size_bytes();
  blocks_.emplace_back(device_, std::max({at_least, 2 * last, smallest_block}));
  ++growths_;
}

Tensor Arena::allocate(DType dtype, Shape shape) {
  const std::size_t bytes = round_up(static_cast<std::size_t>(shape.numel()) * size_of(dtype));
  if (blocks_.empty()) add_block(bytes);
  while (used_ + bytes > blocks_[current_].size_bytes()) {
    before_current_ += blocks_[current_].size_bytes();
    used_ = 0;
    if (++current_ == blocks_.size()) add_block(bytes);
  }
  std::byte* const data = blocks_[current_].data() + used_;
  used_ += bytes;
  peak_ = std::max(peak_, used_bytes());
  return {data, dtype, shape, device_.kind()};
}

void Arena::rewind(Mark mark) {
  while (current_ > mark.block) before_current_ -= blocks_[--current_].size_bytes();
  used_ = mark.used;
}

void Arena::reset(Stream& stream) {
  rewind({});
  if (blocks_.size() > 1) {
    stream.synchronize();  // work in the queue may still read the blocks that are about to be freed
    blocks_.clear();
    blocks_.emplace_back(device_, peak_);
    peak_ = 0;
  }
}

}  // namespace orchard
