// Devices, streams and the memory they own.
//
// A Device allocates memory, counts what it gave away and knows the functions of its backend. A
// Stream is an in-order queue of work on one device. Nothing promises that work is done when a call
// returns: only Stream::synchronize does. The CPU's stream happens to run each operation at once.
//
// A device is driven by one host thread. Buffers must not outlive their device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <typeindex>
#include <unordered_map>

#include "kernels/core/tensor.h"
#include "kernels/device/operation_table.h"

namespace orchard {

class Device;
class Stream;

// What a test reads to prove that a warm training step allocates nothing.
struct DeviceStatistics {
  std::int64_t allocations = 0;        // Device::allocate calls
  std::int64_t live_bytes = 0;         // allocated and not yet freed
  std::int64_t peak_bytes = 0;         // the largest live_bytes seen
  std::int64_t workspace_growths = 0;  // times a stream's workspace had to grow
  std::int64_t primitive_creations =
      0;  // library primitives (oneDNN) built, each costing a JIT compilation
};

// Owning block of device memory, aligned to 256 bytes. Contents start undefined. Movable, not
// copyable.
class Buffer {
 public:
  Buffer() = default;
  Buffer(Device& device, std::size_t bytes);
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    Buffer(std::move(other)).swap(*this);
    return *this;
  }
  ~Buffer();

  std::byte* data() const { return data_; }
  std::size_t size_bytes() const { return bytes_; }
  // A view of the first bytes; throws when the buffer is too small.
  Tensor tensor(DType dtype, Shape shape) const;

  void swap(Buffer& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }

 private:
  Device* device_ = nullptr;
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
};

class Device {
 public:
  virtual ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  DeviceKind kind() const { return kind_; }
  Buffer allocate(std::size_t bytes) { return Buffer(*this, bytes); }
  virtual std::unique_ptr<Stream> make_stream() = 0;

  DeviceStatistics& statistics() { return statistics_; }
  OperationTable& operations() { return operations_; }

  // The one T that a backend keeps on this device (a primitive cache, a library handle), made on
  // first use.
  template <class T>
  T& extension() {
    auto& slot = extensions_[typeid(T)];
    if (!slot) slot = std::make_shared<T>();
    return *static_cast<T*>(slot.get());
  }

 protected:
  explicit Device(DeviceKind kind) : kind_(kind) {}

 private:
  friend class Buffer;
  virtual std::byte* allocate_bytes(std::size_t bytes) = 0;
  virtual void free_bytes(std::byte* data, std::size_t bytes) noexcept = 0;

  DeviceKind kind_;
  DeviceStatistics statistics_;
  OperationTable operations_;
  std::unordered_map<std::type_index, std::shared_ptr<void>> extensions_;
};

class Stream {
 public:
  virtual ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  Device& device() const { return device_; }

  // Returns when everything queued so far has finished.
  virtual void synchronize() = 0;

  // Copies between tensors of one dtype and size. Host tensors must stay untouched until the next
  // synchronize.
  virtual void copy(Tensor destination, ConstTensor source) = 0;
  virtual void fill_zero(Tensor destination) = 0;

  // Scratch memory for one operation: valid, in stream order, until the next operation asks for its
  // own. Grows to the largest request during warm-up and never shrinks. Aligned to 256 bytes.
  std::byte* workspace(std::size_t bytes);

 protected:
  explicit Stream(Device& device) : device_(device) {}

 private:
  Device& device_;
  Buffer workspace_;
};

// Runs `operation` with the implementation that the stream's device has for its type.
template <class Operation>
void dispatch(Stream& stream, const Operation& operation, std::string_view name) {
  const auto function = stream.device().operations().template find<Operation>();
  require(function != nullptr, "operation {} has no implementation on device {}", name,
          name_of(stream.device().kind()));
  function(stream, operation);
}

struct CpuOptions {
  int threads =
      0;  // 0: as OpenMP decides (OMP_NUM_THREADS, then the cores this process is bound to)
};

// The native CPU backend with every operation registered.
std::unique_ptr<Device> make_cpu_device(const CpuOptions& options = {});

}  // namespace orchard
