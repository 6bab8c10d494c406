// Memory of a device that MPI cannot reach, moved through host memory.
//
// Before an operation starts, what it reads is copied to the host and waited for; once it is done,
// what it wrote is copied back when somebody waits for it. The host memory is kept for the next
// operation: once warm, nothing is allocated. Both copies make the host wait for the stream, so the
// host cannot run ahead of the device: for devices whose own library is absent.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "comm/pending.h"
#include "kernels/core/tensor.h"

namespace orchard {

// One operation and its tensors as the host has them. Those in host memory stand for themselves.
// Used again and again: begin, then the tensors, then follow.
class StagedOperation final : public Pending::Operation {
 public:
  StagedOperation() = default;
  virtual ~StagedOperation() = default;
  StagedOperation(const StagedOperation&) = delete;
  StagedOperation& operator=(const StagedOperation&) = delete;

  // `stream` must outlive the operation.
  void begin(Stream& stream);

  // What the operation takes instead of a tensor. Copies are queued on the stream: whoever starts
  // the operation synchronises it before.
  ConstTensor read(const ConstTensor& tensor);
  Tensor written(const Tensor& tensor);
  Tensor read_and_written(const Tensor& tensor);

  // The operation on those tensors has started. Returns what to wait for instead of it.
  Pending::Operation& follow(Pending::Operation& operation);

  void wait(Stream& stream) override;
  void finish() override { wait(*stream_); }

  bool is_free() const { return operation_ == nullptr; }

 private:
  struct HostMemory {
    std::unique_ptr<std::byte[]> bytes;
    std::size_t size = 0;
  };
  struct Result {
    Tensor device, host;
  };
  // Memory that no other tensor of this operation has.
  Tensor host_tensor(const ConstTensor& like);

  Stream* stream_ = nullptr;
  Pending::Operation* operation_ = nullptr;
  std::vector<HostMemory> memory_;
  std::size_t used_ = 0;  // of memory_
  std::vector<Result> results_;
};

}  // namespace orchard
