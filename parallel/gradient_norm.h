// The global norm of gradients, taken without the host: what depends on it is queued before anybody
// knows it.
#pragma once

#include <vector>

#include "kernels/device/host_memory.h"
#include "parallel/flat_shards.h"

namespace orchard {

class GradientNorm {
 public:
  // `counted` are the parts of this rank's flat buffer that no other rank counts
  // (FlatShards::counted_once). Device and ranks must outlive it.
  GradientNorm(Device& device, Communicator& world, std::vector<FlatRange> counted);

  // Queues it, and the copy of its value to the host. Every rank of the world calls it.
  void measure(Stream& stream, ConstTensor flat_gradients, double clip_norm);

  // f32 [1], in stream order: what gradients are to be multiplied by (ClipByNorm). The same on every
  // rank, as the norm is.
  ConstTensor scale() const { return scale_; }
  // Of the last measurement, once the stream has been synchronised.
  double value() const { return value_.front(); }

 private:
  Communicator& world_;
  std::vector<FlatRange> counted_;
  Buffer memory_;
  Tensor totals_;   // fp64 [ranks], sums of squares
  Tensor norm_;     // fp64 [1]
  Tensor squares_;  // f32 [counted]
  Tensor scale_;
  HostVector<double> value_;
};

}  // namespace orchard
