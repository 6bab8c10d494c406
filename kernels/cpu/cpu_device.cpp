// The native CPU device: aligned host memory, and a stream that runs each operation when it is
// called.
#include <omp.h>
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <new>

#include "kernels/cpu/register.h"
#include "kernels/device/device.h"

namespace orchard {
namespace {

// Work is done when its call returns: there is nothing to wait for.
class CpuEvent final : public Event {
 public:
  explicit CpuEvent(Device& device) : Event(device) {}
  void record(Stream&) override {}
  bool is_done() override { return true; }

 private:
  void finish() override {}
};

class CpuGraph final : public Graph {
 public:
  explicit CpuGraph(std::function<void()> work) : work_(std::move(work)) {}
  void replay(Stream&) override { work_(); }

 private:
  std::function<void()> work_;
};

class CpuStream final : public Stream {
 public:
  explicit CpuStream(Device& device) : Stream(device) {}
  void wait(Event&) override {}

  void fill_zero(Tensor destination) override {
    if (destination.numel()) std::memset(destination.raw(), 0, destination.size_bytes());
  }

 private:
  void finish() override {}
  void queue_copy(Tensor destination, ConstTensor source) override {
    std::memcpy(destination.raw(), source.raw(), source.size_bytes());
  }
};

// Large buffers lie in huge pages where the system grants them on request: matrices whose rows are
// pages apart would else miss the TLB at every row.
constexpr std::size_t huge_page = std::size_t{2} << 20;
constexpr std::size_t cache_lines = 256;

std::align_val_t alignment_of(std::size_t bytes) {
  return std::align_val_t{bytes < huge_page ? cache_lines : huge_page};
}

class CpuDevice final : public Device {
 public:
  explicit CpuDevice(const CpuOptions& options) : Device(DeviceKind::cpu) {
    if (options.threads > 0) omp_set_num_threads(options.threads);
    cpu::register_operations(operations());
  }
  std::unique_ptr<Stream> make_stream() override { return std::make_unique<CpuStream>(*this); }
  std::unique_ptr<Event> make_event() override { return std::make_unique<CpuEvent>(*this); }
  std::unique_ptr<Graph> capture(Stream&, std::function<void()> work) override {
    return std::make_unique<CpuGraph>(std::move(work));
  }

 private:
  std::byte* allocate_bytes(std::size_t bytes) override {
    auto* const data = static_cast<std::byte*>(::operator new(bytes, alignment_of(bytes)));
#ifdef MADV_HUGEPAGE
    if (bytes >= huge_page) madvise(data, bytes / huge_page * huge_page, MADV_HUGEPAGE);
#endif
    return data;
  }
  void free_bytes(std::byte* data, std::size_t bytes) noexcept override {
    ::operator delete(data, alignment_of(bytes));
  }
};

}  // namespace

std::unique_ptr<Device> make_cpu_device(const CpuOptions& options) {
  return std::make_unique<CpuDevice>(options);
}

}  // namespace orchard
