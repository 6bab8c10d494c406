// All-reduce and reduce-scatter over MPI, with sums in rank order.
//
// Every rank sends each other rank that rank's piece of the buffer and sums the pieces that it
// receives: each element crosses the wires (n-1)/n times, which is the least there is, and one rank
// adds it up, in rank order. An all-reduce then gathers the sums. A small one sends everybody
// everything at once, which saves the second trip.
//
// Large buffers go in segments, so that what is received fits a scratch of bounded size.
#pragma once

#include <span>
#include <vector>

#include "comm/mpi_engine.h"
#include "kernels/core/tensor.h"

namespace orchard {

class MpiReduction final : public MpiOperation {
 public:
  using MpiOperation::MpiOperation;
  using Ticket = OperationLog::Ticket;

  void all_reduce(Tensor buffer, const Ticket& ticket);
  // `counts`: elements of `all` for each rank.
  void reduce_scatter(ConstTensor all, Tensor mine, std::span<const std::int64_t> counts,
                      const Ticket& ticket);

 private:
  enum class Phase : std::uint8_t { scattering, gathering };
  // Elements [begin, end) of `all`.
  struct Range {
    std::int64_t begin = 0, end = 0;
    std::int64_t count() const { return end - begin; }
  };

  struct Release {
    void operator()(std::byte* scratch) const;
  };

  bool next_phase() override;
  void start(const Ticket& ticket);
  void post_scattering();
  void sum();
  void post_gathering();
  // What rank `r` adds up of the current segment.
  Range piece(int r) const;
  const std::byte* at(std::int64_t element) const;
  std::byte* scratch_of(int r) const;

  DType dtype_ = DType::f32;
  std::size_t element_bytes_ = 4;
  const std::byte* all_ = nullptr;
  std::byte* result_ = nullptr;      // of this rank's first piece, or of element 0 in an all-reduce
  bool gathers_ = false;             // an all-reduce in two phases
  bool replicated_ = false;          // a small all-reduce: every rank's piece is everything
  std::vector<std::int64_t> edges_;  // of the ranks' pieces, over all segments; scattering only
  std::int64_t elements_ = 0, segments_ = 1, segment_ = 0;
  Phase phase_ = Phase::scattering;
  int scatter_tag_ = 0, gather_tag_ = 0;
  std::unique_ptr<std::byte, Release> scratch_;
  std::size_t scratch_bytes_ = 0;
  std::vector<const std::byte*> sources_;
};

}  // namespace orchard
