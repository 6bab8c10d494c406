// A communicator that does one thing wrong, and everything else as the one that it wraps. Given to
// a layout as its world, it puts a fault into any parallel path: groups made from it are faulty,
// too.
#pragma once

#include <algorithm>
#include <cstring>

#include "comm/communicator.h"
#include "kernels/device/device.h"
#include "kernels/elementwise/elementwise.h"

namespace orchard::testing {

enum class FaultKind : std::uint8_t {
  missing,  // every rank goes on with what it had
  doubled,  // sums are taken twice
  // Rows of an all-to-all come without what their first half held: where rows carry their own
  // addresses behind their values, only so can they still be followed.
  half_empty,
};

// The `call`th operation of this kind in groups of this name, from 0 and counted over all of them.
struct Fault {
  std::string group;
  CommOp op = CommOp::all_reduce;
  FaultKind kind = FaultKind::missing;
  int call = 0;
  int seen = 0;  // operations so far: afterwards it tells whether the fault took place

  bool strikes(const std::string& name, CommOp which) {
    return name == group && which == op && seen++ == call;
  }
};

class FaultyCommunicator final : public Communicator {
 public:
  FaultyCommunicator(Communicator& inner, Fault& fault)
      : FaultyCommunicator(
            {.name = inner.name(),
             .rank = inner.rank(),
             .members = {inner.members().begin(), inner.members().end()},
             .nodes = {inner.nodes().begin(), inner.nodes().end()},
             .log = std::make_shared<OperationLog>(
                 inner.members()[static_cast<std::size_t>(inner.rank())], inner.size())},
            inner, fault) {}

 private:
  FaultyCommunicator(Identity identity, Communicator& inner, Fault& fault)
      : Communicator(std::move(identity)), inner_(inner), fault_(fault) {}
  FaultyCommunicator(Identity identity, std::unique_ptr<Communicator> inner, Fault& fault)
      : Communicator(std::move(identity)),
        owned_(std::move(inner)),
        inner_(*owned_),
        fault_(fault) {}

  std::unique_ptr<Communicator> start_group(Identity identity,
                                            std::span<const int> places) override {
    auto inner = inner_.make_group(identity.name, places);
    return std::unique_ptr<Communicator>(
        new FaultyCommunicator(std::move(identity), std::move(inner), fault_));
  }

  Started start_reduction(Stream& stream, const Reduction& reduction, Ticket ticket) override {
    const bool everywhere = reduction.counts.empty();
    const bool strikes =
        fault_.strikes(name(), everywhere ? CommOp::all_reduce : CommOp::reduce_scatter);
    const auto sum = [&] {
      if (everywhere) {
        copy(stream, reduction.result, reduction.all);
        inner_.all_reduce_sum(stream, reduction.result).wait(stream);
      } else {
        inner_.reduce_scatter_sum(stream, reduction.result, reduction.all, reduction.counts)
            .wait(stream);
      }
    };
    if (strikes && fault_.kind == FaultKind::missing) {
      std::int64_t begin = 0;
      if (!everywhere)
        for (int rank = 0; rank < this->rank(); ++rank)
          begin += reduction.counts[static_cast<std::size_t>(rank)];
      const ConstTensor all = reduction.all.reshape({reduction.all.numel()});
      copy(stream, reduction.result, all.slice(begin, reduction.result.numel()));
    } else {
      sum();
      // What a second sum makes of a sum that all ranks have.
      if (strikes) run(stream, Scale{.x = reduction.result, .factor = static_cast<float>(size())});
    }
    return done(ticket);
  }

  Started start_gathering(Stream& stream, const Gathering& gathering, Ticket ticket) override {
    if (fault_.strikes(name(), CommOp::all_gather)) {
      stream.fill_zero(gathering.all);
    } else {
      inner_.all_gather(stream, gathering.all, gathering.mine, gathering.counts).wait(stream);
    }
    return done(ticket);
  }

  Started start_broadcast(Stream& stream, Tensor buffer, int root, Ticket ticket) override {
    inner_.broadcast(stream, buffer, root).wait(stream);
    return done(ticket);
  }

  Started start_all_to_all(Stream& stream, const AllToAll& rows, Ticket ticket) override {
    const bool strikes = fault_.strikes(name(), CommOp::all_to_all);
    if (strikes && fault_.kind == FaultKind::missing) {
      stream.fill_zero(rows.receive);
    } else {
      inner_.all_to_all(stream, rows).wait(stream);
      if (strikes) empty_first_halves(stream, rows.receive);
    }
    return done(ticket);
  }

  Started start_exchange(Stream& stream, std::span<const Outgoing> sends,
                         std::span<const Incoming> receives, Ticket ticket) override {
    // A pipeline receives one message ahead: nothing may be waited for here.
    auto* const exchange = new Exchange(*this, ticket, inner_.exchange(stream, sends, receives));
    if (!receives.empty() && fault_.strikes(name(), CommOp::exchange))
      for (const Incoming& message : receives) exchange->lost.push_back(message.data);
    return exchange;
  }

  void run_barrier(Ticket ticket) override {
    inner_.barrier();
    done(ticket);
  }

  // Host values are 8 bytes each.
  void run_host_gathering(std::span<const std::byte> mine, std::span<std::byte> all,
                          Ticket ticket) override {
    std::vector<std::int64_t> sent(mine.size() / 8), received(all.size() / 8);
    std::memcpy(sent.data(), mine.data(), mine.size());
    inner_.all_gather_on_host(sent, received);
    // Lost: what the others have, their sums and maxima too.
    if (fault_.strikes(name(), CommOp::host)) {
      std::ranges::fill(received, 0);
      std::ranges::copy(sent, received.begin() + rank() * std::ssize(sent));
    }
    std::memcpy(all.data(), received.data(), all.size());
    done(ticket);
  }

  class Exchange final : public Pending::Operation {
   public:
    Exchange(FaultyCommunicator& maker, Ticket number, Pending&& operation)
        : communicator(maker), ticket(number), pending(std::move(operation)) {}
    virtual ~Exchange() = default;
    Exchange(const Exchange&) = delete;
    Exchange& operator=(const Exchange&) = delete;
    void wait(Stream& stream) override {
      pending.wait(stream);
      for (const Tensor& data : lost) stream.fill_zero(data);
      finish();
    }
    void finish() override {
      communicator.done(ticket);
      delete this;
    }

    std::vector<Tensor> lost;  // what is received in vain

   private:
    FaultyCommunicator& communicator;
    Ticket ticket;
    Pending pending;
  };

  // On the CPU.
  static void empty_first_halves(Stream& stream, Tensor rows) {
    stream.synchronize();
    if (rows.numel() == 0) return;
    const std::size_t row_bytes = rows.size_bytes() / static_cast<std::size_t>(rows.dim(0));
    auto* const first = static_cast<std::byte*>(rows.raw());
    for (std::int64_t row = 0; row < rows.dim(0); ++row)
      std::memset(first + static_cast<std::size_t>(row) * row_bytes, 0, row_bytes / 2);
  }

  static void copy(Stream& stream, Tensor to, ConstTensor from) {
    if (to.raw() != from.raw()) stream.copy(to, from.reshape(to.shape()));
  }
  Started done(Ticket ticket) {
    log().started(ticket);
    log().ended(ticket);
    return nullptr;
  }

  std::unique_ptr<Communicator> owned_;
  Communicator& inner_;
  Fault& fault_;
};

}  // namespace orchard::testing
