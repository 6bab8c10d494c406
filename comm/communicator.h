// Collective communication among the ranks of a group.
//
// Buffers are tensors of the communicator's device; a collective is ordered after the work queued
// on the stream before it, and later work on the stream sees its result. Every rank of the group
// must call the same collectives in the same order with the same sizes. Results are the same on
// every rank, bit for bit.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "kernels/core/tensor.h"

namespace orchard {

class Stream;

class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;

  // buffer = sum over ranks of buffer. f32, bf16 is not offered: reductions happen in fp32.
  virtual void all_reduce_sum(Stream& stream, Tensor buffer) = 0;
  // buffer of every rank = buffer of `root`. Any dtype.
  virtual void broadcast(Stream& stream, Tensor buffer, int root) = 0;
  // Returns when every rank has called it.
  virtual void barrier() = 0;

  // Host values, for metrics and decisions all ranks must take alike. values = sum, or largest,
  // over ranks.
  virtual void sum_on_host(std::span<double> values) = 0;
  virtual void max_on_host(std::span<double> values) = 0;
};

// The group of this process alone: works without MPI.
std::unique_ptr<Communicator> make_single_communicator();

}  // namespace orchard
