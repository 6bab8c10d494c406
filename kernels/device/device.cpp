#include "kernels/device/device.h"

#include <new>

namespace orchard {

Device::~Device() = default;
Event::~Event() = default;
Graph::~Graph() = default;

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

void Event::synchronize() {
  if (!is_done()) ++device_.statistics().host_waits;
  finish();
}

}  // namespace orchard
