// Whose gradient was not finite. After gradients of several ranks have been added up, a NaN in the
// sum does not tell where it came from, so each rank remembers how large its own part was.
//
// Costs one reading of the gradients a step (4 bytes an element), and nothing on one rank, whose
// gradients are their own evidence.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "kernels/device/device.h"
#include "parallel/flat_shards.h"

namespace orchard {

struct GradientFault {
  int rank = 0;  // in the world
  std::string parameter;
  std::string operation;  // that brought it to the others: "reduce-scatter 17 of group dp"
};

class GradientEvidence {
 public:
  // The shards must outlive it.
  explicit GradientEvidence(const FlatShards& shards) : shards_(shards) {}

  // Before and after a bucket's reduction is started.
  void before(Stream& stream, std::size_t number);
  void after(std::size_t number);

  // Of the step, all of whose buckets have been reduced: where backward first made a gradient that
  // is not finite. If several ranks had one in a parameter, the first of them. Nothing where each
  // rank's own are finite. All ranks of the world call it, and learn the same.
  std::optional<GradientFault> first_fault(Stream& stream) const;

 private:
  // The number of the last declared parameter of this rank with such a gradient, and its bucket.
  struct Finding {
    std::size_t declared, bucket;
  };
  std::optional<Finding> own_finding(Stream& stream) const;
  Tensor squares(std::size_t bucket) const;

  const FlatShards& shards_;
  // f32 [buckets, 2], of this rank's own gradients and of tied ones that are kept apart.
  Buffer squares_;
  std::vector<std::int64_t> reductions_;  // numbers of the buckets' reductions
};

}  // namespace orchard
