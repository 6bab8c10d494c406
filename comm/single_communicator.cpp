#include "comm/single_communicator.h"

#include <algorithm>

#include "kernels/device/device.h"

namespace orchard {

std::unique_ptr<Communicator> SingleCommunicator::world() {
  return std::make_unique<SingleCommunicator>(
      Identity{.name = "world", .log = std::make_shared<OperationLog>(0, 1)});
}

std::unique_ptr<Communicator> SingleCommunicator::start_group(Identity identity,
                                                              std::span<const int>) {
  return std::make_unique<SingleCommunicator>(std::move(identity));
}

Communicator::Started SingleCommunicator::start_reduction(Stream& stream,
                                                          const Reduction& reduction,
                                                          Ticket ticket) {
  return copy(stream, reduction.result, reduction.all, ticket);
}

Communicator::Started SingleCommunicator::start_gathering(Stream& stream,
                                                          const Gathering& gathering,
                                                          Ticket ticket) {
  return copy(stream, gathering.all, gathering.mine, ticket);
}

Communicator::Started SingleCommunicator::start_broadcast(Stream&, Tensor, int, Ticket ticket) {
  return done(ticket);
}

Communicator::Started SingleCommunicator::start_all_to_all(Stream& stream, const AllToAll& rows,
                                                           Ticket ticket) {
  return copy(stream, rows.receive, rows.send, ticket);
}

Communicator::Started SingleCommunicator::start_exchange(Stream& stream,
                                                         std::span<const Outgoing> sends,
                                                         std::span<const Incoming> receives,
                                                         Ticket ticket) {
  require(sends.size() == receives.size(), "{} messages to itself are received as {} in group {}",
          sends.size(), receives.size(), name());
  for (std::size_t i = 0; i < sends.size(); ++i) stream.copy(receives[i].data, sends[i].data);
  return done(ticket);
}

void SingleCommunicator::run_barrier(Ticket ticket) {
  done(ticket);
}

void SingleCommunicator::run_host_gathering(std::span<const std::byte> mine,
                                            std::span<std::byte> all, Ticket ticket) {
  std::ranges::copy(mine, all.begin());
  done(ticket);
}

Communicator::Started SingleCommunicator::copy(Stream& stream, const Tensor& to,
                                               const ConstTensor& from, const Ticket& ticket) {
  if (to.raw() != from.raw()) stream.copy(to, from);
  return done(ticket);
}

Communicator::Started SingleCommunicator::done(const Ticket& ticket) {
  log().started(ticket);
  log().ended(ticket);
  return nullptr;
}

std::unique_ptr<Communicator> make_single_communicator() {
  return SingleCommunicator::world();
}

}  // namespace orchard
