// Tests of operations that run on every device: cpu, simt, and cuda where the machine has a GPU.
// The test fills Guarded tensors on the host, hands the operation their OnDevice copies, and
// compares what comes back.
#pragma once

#include <initializer_list>
#include <memory>
#include <string>
#include <tuple>

#include "kernels/simt/simt_device.h"
#include "tests/kernels/op_test.h"
#ifdef ORCHARD_HAS_CUDA
#include "kernels/cuda/cuda_device.h"
#endif

namespace orchard::testing {

// A device of this kind, or the reason why there is none.
struct FoundDevice {
  std::unique_ptr<Device> device;
  std::string absence;
};

inline FoundDevice find_device(DeviceKind kind) {
  switch (kind) {
    case DeviceKind::cpu:
      return {make_cpu_device(), {}};
    case DeviceKind::simt:
      return {make_simt_device(), {}};
    case DeviceKind::cuda:
#ifdef ORCHARD_HAS_CUDA
      try {
        return {make_cuda_device(), {}};
      } catch (const Error& error) {
        return {nullptr, error.what()};
      }
#endif
      break;
  }
  return {nullptr, "this build has no such device"};
}

// A device's copy of a host tensor. The emulator watches both ends of an allocation, reads too, so
// there the copy is exact; elsewhere the guard zones travel along.
class OnDevice {
 public:
  OnDevice(Stream& stream, Guarded& host)
      : stream_(stream), host_(host), exact_(stream.device().kind() == DeviceKind::simt) {
    buffer_ = stream.device().allocate(host_side().size_bytes());
    stream.copy(device_side(), host_side());
  }

  operator Tensor() { return tensor(); }       // NOLINT(google-explicit-constructor)
  operator ConstTensor() { return tensor(); }  // NOLINT(google-explicit-constructor)
  Tensor tensor() {
    return {buffer_.data() + (exact_ ? 0 : Guarded::guard), host_.dtype(), host_.shape(),
            stream_.device().kind()};
  }

  // Queues the copy back into the host tensor.
  void download() { stream_.copy(host_side(), device_side()); }

 private:
  Tensor host_side() { return exact_ ? host_.tensor() : host_.with_guards(); }
  Tensor device_side() { return buffer_.tensor(host_side().dtype(), host_side().shape()); }

  Stream& stream_;
  Guarded& host_;
  bool exact_;
  Buffer buffer_;
};

// A fixture of tests with the parameter (device kind, Case), skipped where the device is absent.
template <class Case>
class DeviceTest : public ::testing::TestWithParam<std::tuple<DeviceKind, Case>> {
 protected:
  void SetUp() override {
    const DeviceKind kind = std::get<0>(this->GetParam());
    auto [device, absence] = find_device(kind);
    if (!device) GTEST_SKIP() << name_of(kind) << ": " << absence;
    device_ = std::move(device);
    stream_ = device_->make_stream();
  }

  const Case& parameter() const { return std::get<1>(this->GetParam()); }
  Stream& stream() const { return *stream_; }

  // Afterwards the host tensors hold what the operation wrote.
  template <class Operation>
  void run_and_download(const Operation& op, std::initializer_list<OnDevice*> outputs) {
    run(stream(), op);
    for (OnDevice* const output : outputs) output->download();
    stream().synchronize();
  }

 private:
  std::unique_ptr<Device> device_;
  std::unique_ptr<Stream> stream_;
};

// The devices of this build.
inline auto every_device() {
#ifdef ORCHARD_HAS_CUDA
  return ::testing::Values(DeviceKind::cpu, DeviceKind::simt, DeviceKind::cuda);
#else
  return ::testing::Values(DeviceKind::cpu, DeviceKind::simt);
#endif
}

// Names a test by its device and the number of its case.
template <class Case>
std::string device_test_name(const ::testing::TestParamInfo<std::tuple<DeviceKind, Case>>& test) {
  return std::string(name_of(std::get<0>(test.param))) + "_" + std::to_string(test.index);
}

}  // namespace orchard::testing
