// Streams of a device and the memory that they work on: all that a kernel needs of kernels/device/device.h.
//
// A Stream is an in-order queue of work on one device. Nothing promises that work is done when a call
// returns: only Stream::synchronize does. The CPU's stream happens to run each operation at once.
#pragma once

#include <cstddef>
#include <utility>

#include "kernels/core/tensor.h"

namespace orchard {

class Device;
class Event;

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

class Stream {
 public:
  virtual ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  Device& device() const { return device_; }

  // Returns when everything queued so far has finished.
  void synchronize();

  // Copies between tensors of one dtype and size; throws Error for others. Host tensors must stay
  // untouched until the next synchronize. Of host memory that is not Device::allocate_host's, CUDA's
  // driver may wait for the stream in here (CUDA Runtime API, "API synchronization behavior").
  void copy(Tensor destination, ConstTensor source);
  virtual void fill_zero(Tensor destination) = 0;

  // Work queued from now on begins after the point that `event` stands for now. An event that was
  // never recorded holds nothing up.
  virtual void wait(Event& event) = 0;

  // What libraries of the device take as its stream: a cudaStream_t. Null elsewhere.
  virtual void* native_handle() const { return nullptr; }

  // Scratch memory for one operation: valid, in stream order, until the next operation asks for its
  // own. Grows to the largest request during warm-up and never shrinks. Aligned to 256 bytes.
  std::byte* workspace(std::size_t bytes);

 protected:
  explicit Stream(Device& device) : device_(device) {}

 private:
  virtual void finish() = 0;
  // Of at least one element.
  virtual void queue_copy(Tensor destination, ConstTensor source) = 0;

  friend unsigned* zero_words(Stream&);  // kernels/device/zero_words.h

  Device& device_;
  Buffer workspace_, zero_words_;
};

}  // namespace orchard
