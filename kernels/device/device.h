// Devices, streams and the memory they own.
//
// A Device allocates memory, counts what it gave away and knows the functions of its backend. Its
// streams (kernels/device/stream.h) go on beside each other. What one of them needs of another's work
// it waits for by an Event. A Graph is work that was recorded once and is queued again as a whole.
//
// A device is driven by one host thread. Buffers, streams, events and graphs must not outlive it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <typeindex>
#include <unordered_map>

#include "kernels/core/tensor.h"
#include "kernels/device/operation_table.h"
#include "kernels/device/stream.h"

namespace orchard {

class Event;
class Graph;

// What a test reads to prove that a warm training step allocates nothing, and does not wait.
struct DeviceStatistics {
  std::int64_t allocations = 0;        // Device::allocate calls
  std::int64_t live_bytes = 0;         // allocated and not yet freed
  std::int64_t peak_bytes = 0;         // the largest live_bytes seen
  std::int64_t workspace_growths = 0;  // times a stream's workspace had to grow
  std::int64_t primitive_creations =
      0;  // library primitives (oneDNN) built, each costing a JIT compilation
  // Times that the host waited: for a stream, for an event that had not been passed, or in a copy
  // that a GPU's driver may wait in, see Stream::copy.
  std::int64_t host_waits = 0;
};

class Device {
 public:
  virtual ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  DeviceKind kind() const { return kind_; }
  Buffer allocate(std::size_t bytes) { return Buffer(*this, bytes); }
  // Host memory that copies from and to this device need not wait for: page-locked where the device
  // is a GPU. Aligned for every plain type; contents start undefined. HostVector owns such memory.
  std::byte* allocate_host(std::size_t bytes);
  void free_host(std::byte* data) noexcept;
  // Whether `address` lies in a block of allocate_host.
  bool is_page_locked(const void* address) const;
  virtual std::unique_ptr<Stream> make_stream() = 0;
  virtual std::unique_ptr<Event> make_event() = 0;

  // Records, instead of running it, what `work` queues on `stream` and on streams that wait for its
  // events, whose work `stream` must have waited for at its end. It has run before: the host waits for
  // nothing in it, no stream for an event from outside, no workspace grows. Its events end with it.
  // Replays have its addresses and numbers, the workspaces' too: the streams must outlive the graph,
  // and their workspaces not grow. What it does on the host happens once on a GPU, and in every replay
  // on the CPU, whose operations cannot be recorded: there must be nothing that matters.
  virtual std::unique_ptr<Graph> capture(Stream& stream, std::function<void()> work) = 0;

  // Lets queued work go on, without waiting for it, where nothing but calls of the host moves it: on
  // an emulated device, whose host waits for other ranks. Does nothing elsewhere.
  virtual void advance() {}

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
  virtual std::byte* allocate_host_bytes(std::size_t bytes);
  virtual void free_host_bytes(std::byte* data) noexcept;

  DeviceKind kind_;
  std::map<const std::byte*, std::size_t, std::greater<>> host_blocks_;  // sizes by address
  DeviceStatistics statistics_;
  OperationTable operations_;
  std::unordered_map<std::type_index, std::shared_ptr<void>> extensions_;
};

// A point in the work of a stream, for other streams of the device and for the host to wait for.
class Event {
 public:
  virtual ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  // Stands for the point after everything queued on `stream` so far, and no more for another. Streams
  // that wait already wait for the point they were told of.
  virtual void record(Stream& stream) = 0;
  // The point is passed, or there is none.
  virtual bool is_done() = 0;
  // Returns when is_done().
  void synchronize();

 protected:
  explicit Event(Device& device) : device_(device) {}

 private:
  virtual void finish() = 0;

  Device& device_;
};

// Recorded work.
class Graph {
 public:
  virtual ~Graph();
  Graph() = default;
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  // Queues it on `stream`, of its device: in no order with other streams, be it those of the capture.
  virtual void replay(Stream& stream) = 0;
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
