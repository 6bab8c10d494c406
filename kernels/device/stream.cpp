#include "kernels/device/stream.h"

#include <algorithm>

#include "kernels/device/device.h"
#include "kernels/device/zero_words.h"

namespace orchard {

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

std::byte* Stream::workspace(std::size_t bytes) {
  if (bytes > workspace_.size_bytes()) {
    synchronize();  // work in the queue may still read the block that is about to be freed
    workspace_ = Buffer();
    workspace_ = Buffer(device_, bytes);
    ++device_.statistics().workspace_growths;
  }
  return workspace_.data();
}

unsigned* zero_words(Stream& stream) {
  Buffer& words = stream.zero_words_;
  if (words.size_bytes() == 0) {
    words = Buffer(stream.device_, zero_words_count * sizeof(unsigned));
    stream.fill_zero(words.tensor(DType::i32, {zero_words_count}));
  }
  return reinterpret_cast<unsigned*>(words.data());
}

}  // namespace orchard
