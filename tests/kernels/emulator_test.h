// What the tests of the emulator itself share: device memory with its values, and a device in each
// order of threads.
#pragma once

#include <gmock/gmock.h>

#include <array>
#include <string>
#include <vector>

#include "kernels/gpu/gpu.h"
#include "kernels/simt/simt_device.h"
#include "tests/kernels/op_test.h"

namespace orchard::testing {

using simt::ThreadOrder;

// Device memory for `n` elements and, after a download, their values.
template <class T>
class Values {
 public:
  Values(Device& device, std::int64_t n)
      : host_(static_cast<std::size_t>(n)), buffer_(device, host_.size() * sizeof(T)) {}
  T* device() { return reinterpret_cast<T*>(buffer_.data()); }
  const std::vector<T>& download(Stream& stream) {
    stream.copy(host_tensor(), tensor());
    stream.synchronize();
    return host_;
  }
  void upload(Stream& stream, std::vector<T> values) {
    host_ = std::move(values);
    stream.copy(tensor(), host_tensor());
    stream.synchronize();
  }
  Tensor tensor() { return buffer_.tensor(dtype_of<T>, {static_cast<std::int64_t>(host_.size())}); }
  Tensor host_tensor() {
    return {host_.data(), dtype_of<T>, {static_cast<std::int64_t>(host_.size())}, DeviceKind::cpu};
  }

 private:
  std::vector<T> host_;
  Buffer buffer_;
};

class Emulator : public ::testing::TestWithParam<ThreadOrder> {
 protected:
  const std::unique_ptr<SimtDevice> device_ = make_simt_device({.order = GetParam(),
                                                                .seed = 5,
                                                                .counting = simt::Counting::on,
                                                                .races = simt::Races::find,
                                                                .compute_capability = 90});
  const std::unique_ptr<Stream> stream_ = device_->make_stream();

  template <class... Parameters, class... Arguments>
  void run(const LaunchShape& shape, void (*kernel)(Parameters...), Arguments... arguments) {
    simt::launch(*stream_, shape, kernel, arguments...);
    stream_->synchronize();
  }

  // The message of the fault that a launch must end in.
  template <class... Parameters, class... Arguments>
  std::string fault(const LaunchShape& shape, void (*kernel)(Parameters...),
                    Arguments... arguments) {
    try {
      run(shape, kernel, arguments...);
    } catch (const Error& error) {
      return error.what();
    }
    return "no fault was found";
  }
};

inline std::string order_name(const ::testing::TestParamInfo<ThreadOrder>& test) {
  constexpr std::array names{"fifo", "reverse", "random"};
  return names[static_cast<std::size_t>(test.param)];
}

}  // namespace orchard::testing
