#include "kernels/device/device.h"

#include <algorithm>

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

std::byte* Stream::workspace(std::size_t bytes) {
  if (bytes > workspace_.size_bytes()) {
    synchronize();  // work in the queue may still read the block that is about to be freed
    workspace_ = Buffer();
    workspace_ = Buffer(device_, bytes);
    ++device_.statistics().workspace_growths;
  }
  return workspace_.data();
}

}  // namespace orchard
