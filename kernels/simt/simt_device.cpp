#include "kernels/simt/simt_device.h"

#include <cstring>
#include <functional>
#include <utility>
#include <vector>

#include "kernels/gpu/gpu_properties.h"
#include "kernels/simt/front_end.h"
#include "kernels/simt/heap.h"
#include "kernels/simt/library_call.h"
#include "kernels/simt/multiprocessor.h"
#include "kernels/simt/runtime.h"
#include "kernels/simt/work_queue.h"

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
  SimtStream(Device& device, Heap& heap, Multiprocessor& multiprocessor, WorkQueues& queues)
      : Stream(device),
        heap_(heap),
        multiprocessor_(multiprocessor),
        queues_(queues),
        queue_(queues) {}

  void wait(Event& event) override;

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
      queue_.launches().note(shape);
      QueuedLaunch site(shape, heap_, multiprocessor_);
      if (FrontEnd* const front_end = multiprocessor_.options().front_end) {
        front_end->launch(shape, call, site);
      } else {
        site.run(call.thread);
      }
    });
  }

  WorkQueue& queue() { return queue_; }

 private:
  void finish() override { queue_.run(); }

  void queue_copy(Tensor destination, ConstTensor source) override {
    queue_.emplace_back([this, destination, source] {
      check_operand("source", source);
      check_operand("destination", destination);
      std::memcpy(destination.raw(), source.raw(), source.size_bytes());
      mark_copied(destination, source);
    });
  }

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
  WorkQueues& queues_;
  WorkQueue queue_;
};

WorkQueue& queue_of(Stream& stream, std::string_view what) {
  require(stream.device().kind() == DeviceKind::simt,
          "{} of an emulated device was given a stream of device {}", what,
          name_of(stream.device().kind()));
  return static_cast<SimtStream&>(stream).queue();
}

class SimtEvent final : public Event {
 public:
  SimtEvent(Device& device, WorkQueues& queues) : Event(device), queues_(queues) {}

  void record(Stream& stream) override { point_ = queue_of(stream, "an event").add_point(); }
  bool is_done() override {
    require(!point_ || !point_->recorded, "the host asks for an event of a capture");
    return !point_ || point_->queue == nullptr;
  }
  const std::shared_ptr<WorkPoint>& point() const { return point_; }

 private:
  void finish() override {
    if (!is_done()) queues_.run_until(*point_->queue, [this] { return is_done(); });
    require(!point_ || !point_->dropped, "the work that an event stands for was dropped");
  }

  WorkQueues& queues_;
  std::shared_ptr<WorkPoint> point_;
};

class SimtGraph final : public Graph {
 public:
  SimtGraph(WorkQueues& queues, RecordedWork work) : graph_(queues, std::move(work)) {}
  void replay(Stream& stream) override { graph_.replay(queue_of(stream, "a graph")); }

 private:
  WorkGraph graph_;
};

void SimtStream::wait(Event& event) {
  const auto& point = static_cast<SimtEvent&>(event).point();
  if (point) queue_.add_wait(point);
}

}  // namespace

void enqueue(Stream& stream, const LaunchShape& shape, KernelCall call) {
  require(stream.device().kind() == DeviceKind::simt,
          "emulated kernel {} was launched on a stream of device {}", shape.kernel,
          name_of(stream.device().kind()));
  static_cast<SimtStream&>(stream).launch(shape, std::move(call));
}

void enqueue_polled(Stream& stream, std::function<bool()> poll) {
  queue_of(stream, "communication").add_polled(std::move(poll));
}

void enqueue_library_call(Stream& stream, std::function<void(SimtDevice&)> work) {
  queue_of(stream, "a library's call")
      .emplace_back([&device = static_cast<SimtDevice&>(stream.device()), work = std::move(work)] {
        work(device);
      });
}

}  // namespace simt

SimtDevice::SimtDevice(const SimtOptions& options)
    : Device(DeviceKind::simt),
      heap_(std::make_unique<simt::Heap>()),
      multiprocessor_(std::make_unique<simt::Multiprocessor>(options, *heap_, counters_)),
      queues_(std::make_unique<simt::WorkQueues>(*heap_)) {
  extension<GpuProperties>() = {.compute_capability = options.compute_capability,
                                .multiprocessors = options.multiprocessors,
                                .shared_bytes = options.shared_bytes_limit};
  simt::register_operations(operations());
}

SimtDevice::~SimtDevice() = default;

std::unique_ptr<Stream> SimtDevice::make_stream() {
  return std::make_unique<simt::SimtStream>(*this, *heap_, *multiprocessor_, *queues_);
}

std::unique_ptr<Event> SimtDevice::make_event() {
  return std::make_unique<simt::SimtEvent>(*this, *queues_);
}

std::unique_ptr<Graph> SimtDevice::capture(Stream& stream, std::function<void()> work) {
  return std::make_unique<simt::SimtGraph>(*queues_,
                                           simt::queue_of(stream, "a graph").record(work));
}

void SimtDevice::advance() {
  queues_->advance();
}

void SimtDevice::read(void* host, const void* device, std::size_t bytes) const {
  require(bytes == 0 || heap_->contains(device, bytes), "what {} bytes are read from is {}", bytes,
          heap_->locate(device));
  if (bytes > 0) std::memcpy(host, device, bytes);
}

void SimtDevice::write(void* device, const void* host, std::size_t bytes) {
  require(bytes == 0 || heap_->contains(device, bytes), "what {} bytes are written to is {}", bytes,
          heap_->locate(device));
  if (bytes == 0) return;
  std::memcpy(device, host, bytes);
  heap_->initialised().mark(heap_->offset_of(device), bytes);
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
