// Operations that only move bytes: one phase of messages.
#pragma once

#include <span>

#include "comm/communicator.h"
#include "comm/mpi_engine.h"

namespace orchard {

class MpiTransfer final : public MpiOperation {
 public:
  using MpiOperation::MpiOperation;
  using Ticket = OperationLog::Ticket;

  // all = `mine` of rank 0, of rank 1, ...
  struct Gathering {
    const std::byte* mine = nullptr;
    std::byte* all = nullptr;
    std::span<const std::int64_t> counts;  // elements of each rank
    std::size_t element_bytes = 1;
  };
  void gather(const Gathering& gathering, const Ticket& ticket);
  void all_to_all(const AllToAll& rows, const Ticket& ticket);
  void exchange(std::span<const Outgoing> sends, std::span<const Incoming> receives,
                const Ticket& ticket);
  void broadcast(std::byte* data, std::size_t bytes, int root, const Ticket& ticket);
  void barrier(const Ticket& ticket);

 private:
  bool next_phase() override { return false; }
};

}  // namespace orchard
