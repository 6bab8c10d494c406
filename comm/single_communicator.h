// A group of one: sums and gatherings are copies on the stream, in memory of any device.
#pragma once

#include "comm/communicator.h"

namespace orchard {

class SingleCommunicator final : public Communicator {
 public:
  explicit SingleCommunicator(Identity identity) : Communicator(std::move(identity)) {}

  static std::unique_ptr<Communicator> world();

 private:
  std::unique_ptr<Communicator> start_group(Identity identity,
                                            std::span<const int> places) override;
  Started start_reduction(Stream& stream, const Reduction& reduction, Ticket ticket) override;
  Started start_gathering(Stream& stream, const Gathering& gathering, Ticket ticket) override;
  Started start_broadcast(Stream& stream, Tensor buffer, int root, Ticket ticket) override;
  Started start_all_to_all(Stream& stream, const AllToAll& rows, Ticket ticket) override;
  Started start_exchange(Stream& stream, std::span<const Outgoing> sends,
                         std::span<const Incoming> receives, Ticket ticket) override;
  void run_barrier(Ticket ticket) override;
  void run_host_gathering(std::span<const std::byte> mine, std::span<std::byte> all,
                          Ticket ticket) override;

  Started copy(Stream& stream, const Tensor& to, const ConstTensor& from, const Ticket& ticket);
  Started done(const Ticket& ticket);
};

}  // namespace orchard
