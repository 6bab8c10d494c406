// Vectors in host memory that copies from and to a device need not wait for (Device::allocate_host).
#pragma once

#include <cstddef>
#include <vector>

#include "kernels/device/device.h"

namespace orchard {

template <class T>
class HostAllocator {
 public:
  using value_type = T;

  // The device must outlive what is allocated.
  explicit HostAllocator(Device& device) : device_(&device) {}
  template <class U>
  explicit HostAllocator(const HostAllocator<U>& other) : device_(&other.device()) {}

  T* allocate(std::size_t n) { return reinterpret_cast<T*>(device_->allocate_host(n * sizeof(T))); }
  void deallocate(T* data, std::size_t) noexcept {
    device_->free_host(reinterpret_cast<std::byte*>(data));
  }

  Device& device() const { return *device_; }
  bool operator==(const HostAllocator&) const = default;

 private:
  Device* device_;
};

// Made with HostVector<T> v{HostAllocator<T>(device)}.
template <class T>
using HostVector = std::vector<T, HostAllocator<T>>;

}  // namespace orchard
