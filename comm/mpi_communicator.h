// A group of several ranks over MPI. Moves host memory; that of other devices passes through it
// (comm/host_staging.h).
#pragma once

#include "comm/communicator.h"
#include "comm/host_staging.h"
#include "comm/mpi_reduction.h"
#include "comm/mpi_transfer.h"

namespace orchard {

struct NcclContext;

class MpiCommunicator : public Communicator {
 public:
  // All ranks of MPI_COMM_WORLD. ranks_per_node: 0 to ask MPI who shares memory with whom.
  static std::unique_ptr<Communicator> world(int ranks_per_node);

  // Takes the MPI communicator over; its ranks are the members in their order.
  MpiCommunicator(Identity identity, MPI_Comm communicator, std::shared_ptr<MpiEngine> engine);
  ~MpiCommunicator() override;

  void progress() override { engine_->progress(); }

  // The same ranks, with a log of operations in common, and NCCL for memory of the device.
  std::unique_ptr<Communicator> over_nccl(const NcclContext& context);

 protected:
  // Of some ranks of this group.
  MPI_Comm make_mpi_group(std::span<const int> places) const;
  MPI_Comm mpi() const { return communicator_; }
  const std::shared_ptr<MpiEngine>& engine() const { return engine_; }

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

 private:
  StagedOperation& stage(Stream& stream);
  MpiTransfer& take_transfer() { return transfers_.take(place_); }

  MPI_Comm communicator_;
  std::shared_ptr<MpiEngine> engine_;
  MpiOperation::Place place_;
  OperationPool<MpiTransfer> transfers_;
  OperationPool<MpiReduction> reductions_;
  OperationPool<StagedOperation> staged_;
  std::vector<Outgoing> host_sends_;
  std::vector<Incoming> host_receives_;
  std::vector<std::int64_t> host_counts_;
};

}  // namespace orchard
