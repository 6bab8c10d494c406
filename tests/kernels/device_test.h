// Tests of operations that run on every device: cpu, simt, and cuda where the machine has a GPU.
// The test fills Guarded tensors on the host, hands the operation their OnDevice copies, and
// compares what comes back.
#pragma once

#include <omp.h>

#include <algorithm>
#include <initializer_list>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/simt/simt_device.h"
#include "tests/kernels/op_test.h"
#include "tests/kernels/simt_policy.h"
#ifdef ORCHARD_HAS_CUDA
#include "kernels/cuda/cuda_device.h"
#endif

namespace orchard::testing {

// A device of this kind, or the reason why there is none.
struct FoundDevice {
  std::unique_ptr<Device> device;
  std::string absence;
};

// `place` shares several GPUs out in turn, to ranks for instance.
inline FoundDevice find_device(DeviceKind kind, const SimtOptions& simt = {},
                               [[maybe_unused]] int place = 0) {
  switch (kind) {
    case DeviceKind::cpu:
      return {make_cpu_device(), {}};
    case DeviceKind::simt:
      return {make_policy_device(simt), {}};
    case DeviceKind::cuda:
#ifdef ORCHARD_HAS_CUDA
      try {
        return {make_cuda_device(place % std::max(cuda_device_count(), 1)), {}};
      } catch (const Error& error) {
        return {nullptr, error.what()};
      }
#endif
      break;
  }
  return {nullptr, "this build has no such device"};
}

// A device's copy of a host tensor. The emulator watches both ends of an allocation, reads too, so
// there the copy is exact; elsewhere the guard zones travel along. `shift` elements move the tensor
// away from alignment.
class OnDevice {
 public:
  OnDevice(Stream& stream, Guarded& host, int shift = 0)
      : stream_(stream),
        host_(host),
        exact_(stream.device().kind() == DeviceKind::simt),
        shift_bytes_(static_cast<std::size_t>(shift) * size_of(host.dtype())) {
    buffer_ = stream.device().allocate(shift_bytes_ + host_side().size_bytes());
    upload();
  }

  operator Tensor() { return tensor(); }       // NOLINT(google-explicit-constructor)
  operator ConstTensor() { return tensor(); }  // NOLINT(google-explicit-constructor)
  Tensor tensor() {
    return {buffer_.data() + shift_bytes_ + (exact_ ? 0 : Guarded::guard), host_.dtype(),
            host_.shape(), stream_.device().kind()};
  }
  Guarded& host() { return host_; }

  // Queue the copy of the host tensor to the device, and back.
  void upload() { stream_.copy(device_side(), host_side()); }
  void download() { stream_.copy(host_side(), device_side()); }

 private:
  Tensor host_side() { return exact_ ? host_.tensor() : host_.with_guards(); }
  Tensor device_side() {
    return {buffer_.data() + shift_bytes_, host_side().dtype(), host_side().shape(),
            stream_.device().kind()};
  }

  Stream& stream_;
  Guarded& host_;
  bool exact_;
  std::size_t shift_bytes_;
  Buffer buffer_;
};

// Runs `op` and brings the outputs to their host tensors, which it takes their initial values from.
template <class Operation>
void run_and_download(Stream& stream, const Operation& op,
                      std::initializer_list<OnDevice*> outputs) {
  for (OnDevice* const output : outputs) output->upload();
  run(stream, op);
  for (OnDevice* const output : outputs) output->download();
  stream.synchronize();
}

// Runs `op` twice from the same initial outputs, on the CPU with three threads and with one: equal
// bits. The outputs are brought to their host tensors.
template <class Operation>
void run_repeatedly(Stream& stream, const Operation& op, std::initializer_list<OnDevice*> outputs) {
  const int threads = omp_get_max_threads();
  std::vector<Guarded> initial, first;
  for (OnDevice* const output : outputs) initial.push_back(output->host());
  omp_set_num_threads(3);
  run_and_download(stream, op, outputs);
  std::size_t i = 0;
  for (OnDevice* const output : outputs) {
    first.push_back(output->host());
    output->host() = initial[i++];  // keeps the address: equal sizes
  }
  omp_set_num_threads(1);
  run_and_download(stream, op, outputs);
  omp_set_num_threads(threads);
  i = 0;
  for (OnDevice* const output : outputs) {
    EXPECT_TRUE(output->host() == first[i]) << "output " << i << " differs between two runs";
    ++i;
  }
}

// A fixture of tests with the parameter (device kind, Case), skipped where the device is absent.
template <class Case>
class DeviceTest : public ::testing::TestWithParam<std::tuple<DeviceKind, Case>> {
 protected:
  void SetUp() override {
    const DeviceKind kind = std::get<0>(this->GetParam());
    auto [device, absence] = find_device(kind, simt_options(), place());
    if (!device) GTEST_SKIP() << name_of(kind) << ": " << absence;
    device_ = std::move(device);
    stream_ = device_->make_stream();
  }

  // What the emulator is made with, for tests to override.
  virtual SimtOptions simt_options() const { return {}; }
  // Which of several GPUs.
  virtual int place() const { return 0; }

  const Case& parameter() const { return std::get<1>(this->GetParam()); }
  DeviceKind kind() const { return std::get<0>(this->GetParam()); }
  Stream& stream() const { return *stream_; }
  OnDevice on_device(Guarded& host, int shift = 0) const { return OnDevice(stream(), host, shift); }

 private:
  std::unique_ptr<Device> device_;
  std::unique_ptr<Stream> stream_;
};

// The devices of this build.
inline std::vector<DeviceKind> device_kinds() {
#ifdef ORCHARD_HAS_CUDA
  return {DeviceKind::cpu, DeviceKind::simt, DeviceKind::cuda};
#else
  return {DeviceKind::cpu, DeviceKind::simt};
#endif
}
inline auto every_device() {
  return ::testing::ValuesIn(device_kinds());
}

// Those that run the CUDA kernels.
inline auto every_gpu() {
#ifdef ORCHARD_HAS_CUDA
  return ::testing::Values(DeviceKind::simt, DeviceKind::cuda);
#else
  return ::testing::Values(DeviceKind::simt);
#endif
}

// Names a test by its device and the number of its case.
template <class Case>
std::string device_test_name(const ::testing::TestParamInfo<std::tuple<DeviceKind, Case>>& test) {
  return std::string(name_of(std::get<0>(test.param))) + "_" + std::to_string(test.index);
}

}  // namespace orchard::testing
