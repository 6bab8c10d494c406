// The stream and the event of a CUDA device.
#pragma once

#include <vector>

#include "kernels/cuda/call.h"
#include "kernels/cuda/cuda_stream.h"
#include "kernels/device/device.h"

namespace orchard::cuda {

class CudaEvent final : public Event {
 public:
  explicit CudaEvent(Device& device);
  ~CudaEvent() override;
  void record(Stream& stream) override;
  bool is_done() override;
  cudaEvent_t handle() const { return handle_; }

 private:
  void finish() override;

  cudaEvent_t handle_ = nullptr;
};

class CudaStream final : public Stream {
 public:
  // `all` is the list of the device's streams, which this one is in while it lives.
  CudaStream(Device& device, std::vector<CudaStream*>& all);
  ~CudaStream() override;

  void fill_zero(Tensor destination) override;
  void wait(Event& event) override;
  std::unique_ptr<Graph> capture(const std::function<void()>& work);
  void* native_handle() const override { return handle_; }

  cudaStream_t handle() const { return handle_; }
  LaunchLog& launches() { return launches_; }

 private:
  void finish() override;
  void queue_copy(Tensor destination, ConstTensor source) override;

  std::vector<CudaStream*>& all_;
  cudaStream_t handle_ = nullptr;
  LaunchLog launches_;
};

}  // namespace orchard::cuda
