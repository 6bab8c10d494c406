#include "kernels/simt/simt_device.h"

#include <cstring>
#include <functional>
#include <utility>
#include <vector>

#include "kernels/gpu/gpu_properties.h"
#include "kernels/simt/front_end.h"
#include "kernels/simt/heap.h"
#include "kernels/simt/multiprocessor.h"
#include "kernels/simt/runtime.h"

namespace orchard {
namespace simt {
namespace {

class QueuedLaunch final : public LaunchSite {
 public:
  QueuedLaunch(const LaunchShape& shape, Heap& heap, Multiprocessor& multiprocessor)
      : shape_(shape), heap_(heap), multiprocessor_(multiprocessor) {}

  void run(const std::function<void()>& thread) override {
    multiprocessor_.run(shape_, thread);
    heap_.check_red_zones(fmt::format("kernel {}", shape_.kernel));
  }
  HeapImage save_memory() const override { return heap_.save(); }
  void restore_memory(const HeapImage& saved) override { heap_.restore(saved); }
  const Counters& counters() const override { return multiprocessor_.counters(); }

 private:
  const LaunchShape& shape_;
  Heap& heap_;
  Multiprocessor& multiprocessor_;
};

class SimtStream final : public Stream {
 public:
  SimtStream(Device& device, Heap& heap, Multiprocessor& multiprocessor)
      : Stream(device), heap_(heap), multiprocessor_(multiprocessor) {}

  void synchronize() override {
    const std::vector<std::function<void()>> work = std::exchange(queue_, {});
    if (work.empty()) return;
    const HeapAccess access(heap_);
    for (const auto& run : work) run();
  }

  void copy(Tensor destination, ConstTensor source) override {
    require(destination.dtype() == source.dtype() && destination.numel() == source.numel(),
            "copy of {} {} into {} {}", name_of(source.dtype()), source.shape(),
            name_of(destination.dtype()), destination.shape());
    if (!source.numel()) return;
    queue_.emplace_back([this, destination, source] {
      check_operand("source", source);
      check_operand("destination", destination);
      std::memcpy(destination.raw(), source.raw(), source.size_bytes());
      mark_copied(destination, source);
    });
  }

  void fill_zero(Tensor destination) override {
    if (!destination.numel()) return;
    queue_.emplace_back([this, destination] {
      check_operand("destination", destination);
      std::memset(destination.raw(), 0, destination.size_bytes());
      heap_.initialised().mark(heap_.offset_of(destination.raw()), destination.size_bytes());
    });
  }

  void launch(const LaunchShape& shape, KernelCall call) {
    queue_.emplace_back([this, shape, call = std::move(call)] {
      QueuedLaunch site(shape, heap_, multiprocessor_);
      if (FrontEnd* const front_end = multiprocessor_.options().front_end) {
        front_end->launch(shape, call, site);
      } else {
        site.run(call.thread);
      }
    });
  }

 private:
  void check_operand(std::string_view role, const ConstTensor& tensor) const {
    require(tensor.device() == DeviceKind::cpu || heap_.contains(tensor.raw(), tensor.size_bytes()),
            "copy or fill: the {} of {} bytes is {}", role, tensor.size_bytes(),
            heap_.locate(tensor.raw()));
  }

  // What was never written stays so when it is copied.
  void mark_copied(const Tensor& destination, const ConstTensor& source) {
    if (destination.device() == DeviceKind::cpu) return;
    const std::size_t to = heap_.offset_of(destination.raw()), bytes = source.size_bytes();
    if (source.device() == DeviceKind::cpu) {
      heap_.initialised().mark(to, bytes);
    } else {
      heap_.initialised().copy(to, heap_.initialised(), heap_.offset_of(source.raw()), bytes);
    }
  }

  Heap& heap_;
  Multiprocessor& multiprocessor_;
  std::vector<std::function<void()>> queue_;
};

}  // namespace

void enqueue(Stream& stream, const LaunchShape& shape, KernelCall call) {
  require(stream.device().kind() == DeviceKind::simt,
          "emulated kernel {} was launched on a stream of device {}", shape.kernel,
          name_of(stream.device().kind()));
  static_cast<SimtStream&>(stream).launch(shape, std::move(call));
}

}  // namespace simt

SimtDevice::SimtDevice(const SimtOptions& options)
    : Device(DeviceKind::simt),
      heap_(std::make_unique<simt::Heap>()),
      multiprocessor_(std::make_unique<simt::Multiprocessor>(options, *heap_, counters_)) {
  extension<GpuProperties>() = {.compute_capability = options.compute_capability,
                                .multiprocessors = options.multiprocessors};
  simt::register_operations(operations());
}

SimtDevice::~SimtDevice() = default;

std::unique_ptr<Stream> SimtDevice::make_stream() {
  return std::make_unique<simt::SimtStream>(*this, *heap_, *multiprocessor_);
}

std::byte* SimtDevice::allocate_bytes(std::size_t bytes) {
  return heap_->allocate(bytes);
}

void SimtDevice::free_bytes(std::byte* data, std::size_t) noexcept {
  heap_->free(data);
}

std::unique_ptr<SimtDevice> make_simt_device(const SimtOptions& options) {
  return std::make_unique<SimtDevice>(options);
}

}  // namespace orchard
