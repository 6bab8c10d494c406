#include "kernels/device/device.h"

#include <algorithm>
#include <new>

#include "kernels/device/zero_words.h"

namespace orchard {

Device::~Device() = default;
Event::~Event() = default;
Graph::~Graph() = default;
Stream::~Stream() = default;

Buffer::Buffer(Device& device, std::size_t bytes) : device_(&device), bytes_(bytes) {
  data_ = device.allocate_bytes(bytes);
  DeviceStatistics& statistics = device.statistics();
  ++statistics.allocations;
  statistics.live_bytes += static_cast<std::int64_t>(bytes);
  statistics.peak_bytes = std::max(statistics.peak_bytes, statistics.live_bytes);
}

Buffer::~Buffer() {
  if (!device_) return;
  device_->statistics().live_bytes -= static_cast<std::int64_t>(bytes_);
  device_->free_bytes(data_, bytes_);
}

Tensor Buffer::tensor(DType dtype, Shape shape) const {
  const auto needed = static_cast<std::size_t>(shape.numel()) * size_of(dtype);
  require(device_ && needed <= bytes_, "a buffer of {} bytes cannot hold {} {}", bytes_,
          name_of(dtype), shape);
  return {data_, dtype, shape, device_->kind()};
}

std::byte* Device::allocate_host(std::size_t bytes) {
  std::byte* const data = allocate_host_bytes(bytes);
  host_blocks_.emplace(data, bytes);
  return data;
}

void Device::free_host(std::byte* data) noexcept {
  host_blocks_.erase(data);
  free_host_bytes(data);
}

bool Device::is_page_locked(const void* address) const {
  const auto* const data = static_cast<const std::byte*>(address);
  const auto block = host_blocks_.lower_bound(data);  // the last that begins at or before it
  return block != host_blocks_.end() && data < block->first + block->second;
}

std::byte* Device::allocate_host_bytes(std::size_t bytes) {
  return static_cast<std::byte*>(::operator new(bytes));
}

void Device::free_host_bytes(std::byte* data) noexcept {
  ::operator delete(data);
}

void Stream::synchronize() {
  ++device_.statistics().host_waits;
  finish();
}

void Stream::copy(Tensor destination, ConstTensor source) {
  require(destination.dtype() == source.dtype() && destination.numel() == source.numel(),
          "copy of {} {} into {} {}", name_of(source.dtype()), source.shape(),
          name_of(destination.dtype()), destination.shape());
  if (source.numel() == 0) return;
  const auto may_wait = [&](const ConstTensor& side) {
    return side.device() != device_.kind() && !device_.is_page_locked(side.raw());
  };
  if (may_wait(destination) || may_wait(source)) ++device_.statistics().host_waits;
  queue_copy(destination, source);
}

void Event::synchronize() {
  if (!is_done()) ++device_.statistics().host_waits;
  finish();
}

std::byte* Stream::workspace(std::size_t bytes) {
  constexpr std::size_t of_zero = zero_words_count * sizeof(unsigned);  // they come first
  if (of_zero + bytes > workspace_.size_bytes()) {
    synchronize();  // work in the queue may still read the block that is about to be freed
    workspace_ = Buffer();
    workspace_ = Buffer(device_, of_zero + bytes);
    ++device_.statistics().workspace_growths;
    fill_zero(workspace_.tensor(DType::i32, {zero_words_count}));
  }
  return workspace_.data() + of_zero;
}

unsigned* zero_words(Stream& stream) {
  return reinterpret_cast<unsigned*>(stream.workspace(0)) - zero_words_count;
}

}  // namespace orchard
