// The native CPU device: aligned host memory, and a stream that runs each operation when it is
// called.
#include <omp.h>

#include <cstdlib>
#include <cstring>
#include <new>

#include "kernels/cpu/register.h"
#include "kernels/device/device.h"

namespace orchard {
namespace {

class CpuStream final : public Stream {
 public:
  explicit CpuStream(Device& device) : Stream(device) {}
  void synchronize() override {}

  void copy(Tensor destination, ConstTensor source) override {
    require(destination.dtype() == source.dtype() && destination.numel() == source.numel(),
            "copy of {} {} into {} {}", name_of(source.dtype()), source.shape(),
            name_of(destination.dtype()), destination.shape());
    if (source.numel()) std::memcpy(destination.raw(), source.raw(), source.size_bytes());
  }

  void fill_zero(Tensor destination) override {
    if (destination.numel()) std::memset(destination.raw(), 0, destination.size_bytes());
  }
};

class CpuDevice final : public Device {
 public:
  explicit CpuDevice(const CpuOptions& options) : Device(DeviceKind::cpu) {
    if (options.threads > 0) omp_set_num_threads(options.threads);
    cpu::register_operations(operations());
  }
  std::unique_ptr<Stream> make_stream() override { return std::make_unique<CpuStream>(*this); }

 private:
  std::byte* allocate_bytes(std::size_t bytes) override {
    return static_cast<std::byte*>(::operator new (bytes, std::align_val_t{256}));
  }
  void free_bytes(std::byte* data, std::size_t) noexcept override {
    ::operator delete (data, std::align_val_t{256});
  }
};

}  // namespace

std::unique_ptr<Device> make_cpu_device(const CpuOptions& options) {
  return std::make_unique<CpuDevice>(options);
}

}  // namespace orchard
