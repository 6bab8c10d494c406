#include "comm/host_staging.h"

#include <utility>

#include "kernels/device/device.h"

namespace orchard {

void StagedOperation::begin(Stream& stream) {
  stream_ = &stream;
  used_ = 0;
  results_.clear();
}

Tensor StagedOperation::host_tensor(const ConstTensor& like) {
  if (used_ == memory_.size()) memory_.emplace_back();
  HostMemory& memory = memory_[used_++];
  if (memory.size < like.size_bytes()) {
    memory.bytes = std::make_unique_for_overwrite<std::byte[]>(like.size_bytes());
    memory.size = like.size_bytes();
  }
  return {memory.bytes.get(), like.dtype(), like.shape(), DeviceKind::cpu};
}

ConstTensor StagedOperation::read(const ConstTensor& tensor) {
  if (tensor.device() == DeviceKind::cpu) return tensor;
  const Tensor host = host_tensor(tensor);
  if (tensor.numel() > 0) stream_->copy(host, tensor);
  return host;
}

Tensor StagedOperation::written(const Tensor& tensor) {
  if (tensor.device() == DeviceKind::cpu) return tensor;
  const Tensor host = host_tensor(tensor);
  if (tensor.numel() > 0) results_.push_back({.device = tensor, .host = host});
  return host;
}

Tensor StagedOperation::read_and_written(const Tensor& tensor) {
  const Tensor host = written(tensor);
  if (tensor.device() != DeviceKind::cpu && tensor.numel() > 0) stream_->copy(host, tensor);
  return host;
}

Pending::Operation& StagedOperation::follow(Pending::Operation& operation) {
  if (used_ == 0) return operation;
  operation_ = &operation;
  return *this;
}

void StagedOperation::wait(Stream& stream) {
  operation_->finish();
  for (const auto& [device, host] : results_) stream.copy(device, host);
  // The next operation may want the host memory before the stream has read it.
  if (!results_.empty()) stream.synchronize();
  operation_ = nullptr;
}

}  // namespace orchard
