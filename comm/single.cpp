// A group of one: sums and gatherings are copies.
#include "comm/communicator.h"
#include "kernels/device/device.h"

namespace orchard {
namespace {

class SingleCommunicator final : public Communicator {
 public:
  explicit SingleCommunicator(Identity identity) : Communicator(std::move(identity)) {}

  static std::unique_ptr<Communicator> world() {
    return std::make_unique<SingleCommunicator>(
        Identity{.name = "world", .log = std::make_shared<OperationLog>(0, 1)});
  }

 private:
  std::unique_ptr<Communicator> start_group(Identity identity, std::span<const int>) override {
    return std::make_unique<SingleCommunicator>(std::move(identity));
  }
  Started start_reduction(Stream& stream, const Reduction& reduction, Ticket ticket) override {
    return copy(stream, reduction.result, reduction.all, ticket);
  }
  Started start_gathering(Stream& stream, const Gathering& gathering, Ticket ticket) override {
    return copy(stream, gathering.all, gathering.mine, ticket);
  }
  Started start_broadcast(Stream&, Tensor, int, Ticket ticket) override { return done(ticket); }
  Started start_all_to_all(Stream& stream, const AllToAll& rows, Ticket ticket) override {
    return copy(stream, rows.receive, rows.send, ticket);
  }
  Started start_exchange(Stream& stream, std::span<const Outgoing> sends,
                         std::span<const Incoming> receives, Ticket ticket) override {
    require(sends.size() == receives.size(), "{} messages to itself are received as {} in group {}",
            sends.size(), receives.size(), name());
    for (std::size_t i = 0; i < sends.size(); ++i) stream.copy(receives[i].data, sends[i].data);
    return done(ticket);
  }
  void run_barrier(Ticket ticket) override { done(ticket); }
  void run_host_gathering(std::span<const std::byte> mine, std::span<std::byte> all,
                          Ticket ticket) override {
    std::copy(mine.begin(), mine.end(), all.begin());
    done(ticket);
  }

  Started copy(Stream& stream, Tensor to, ConstTensor from, Ticket ticket) {
    if (to.raw() != from.raw()) stream.copy(to, from);
    return done(ticket);
  }
  Started done(Ticket ticket) {
    log().started(ticket);
    log().ended(ticket);
    return nullptr;
  }
};

}  // namespace

std::unique_ptr<Communicator> make_single_communicator() {
  return SingleCommunicator::world();
}

}  // namespace orchard
