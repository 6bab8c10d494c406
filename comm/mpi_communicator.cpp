#include "comm/mpi_communicator.h"

#include <algorithm>
#include <numeric>

#include "kernels/device/device.h"

namespace orchard {
namespace {

void return_errors(MPI_Comm communicator) {
  check_mpi(MPI_Comm_set_errhandler(communicator, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
}

// The node of each rank: those that can share memory are on one. Nodes are numbered in the order
// of their first ranks.
std::vector<int> nodes_of(MPI_Comm communicator, int rank, int size) {
  MPI_Comm node = MPI_COMM_NULL;
  check_mpi(MPI_Comm_split_type(communicator, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &node),
            "MPI_Comm_split_type");
  int first = rank;
  check_mpi(MPI_Bcast(&first, 1, MPI_INT, 0, node), "MPI_Bcast");
  MPI_Comm_free(&node);
  std::vector<int> firsts(static_cast<std::size_t>(size)), nodes;
  check_mpi(MPI_Allgather(&first, 1, MPI_INT, firsts.data(), 1, MPI_INT, communicator),
            "MPI_Allgather");
  std::vector<int> seen;
  for (const int f : firsts) {
    const auto found = std::find(seen.begin(), seen.end(), f);
    nodes.push_back(static_cast<int>(found - seen.begin()));
    if (found == seen.end()) seen.push_back(f);
  }
  return nodes;
}

}  // namespace

std::unique_ptr<Communicator> MpiCommunicator::world(int ranks_per_node) {
  // A private communicator: nobody else's messages can match ours.
  MPI_Comm communicator = MPI_COMM_NULL;
  check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &communicator), "MPI_Comm_dup");
  return_errors(communicator);
  int rank = 0, size = 1;
  MPI_Comm_rank(communicator, &rank);
  MPI_Comm_size(communicator, &size);
  Identity identity{.name = "world",
                    .rank = rank,
                    .nodes = {},
                    .log = std::make_shared<OperationLog>(rank, size)};
  identity.members.resize(static_cast<std::size_t>(size));
  std::iota(identity.members.begin(), identity.members.end(), 0);
  if (ranks_per_node > 0) {
    for (int r = 0; r < size; ++r) identity.nodes.push_back(r / ranks_per_node);
  } else {
    identity.nodes = nodes_of(communicator, rank, size);
  }
  return std::make_unique<MpiCommunicator>(std::move(identity), communicator,
                                           std::make_shared<MpiEngine>());
}

MpiCommunicator::MpiCommunicator(Identity identity, MPI_Comm communicator,
                                 std::shared_ptr<MpiEngine> engine)
    : Communicator(std::move(identity)),
      communicator_(communicator),
      engine_(std::move(engine)),
      place_{.communicator = communicator_,
             .rank = rank(),
             .size = size(),
             .engine = engine_.get(),
             .log = shared_log().get()} {}

MpiCommunicator::~MpiCommunicator() {
  MPI_Comm_free(&communicator_);
}

std::unique_ptr<Communicator> MpiCommunicator::start_group(Identity identity,
                                                           std::span<const int> places) {
  MPI_Group all = MPI_GROUP_NULL, some = MPI_GROUP_NULL;
  MPI_Comm communicator = MPI_COMM_NULL;
  check_mpi(MPI_Comm_group(communicator_, &all), "MPI_Comm_group");
  check_mpi(MPI_Group_incl(all, static_cast<int>(places.size()), places.data(), &some),
            "MPI_Group_incl");
  check_mpi(MPI_Comm_create_group(communicator_, some, /*tag=*/0, &communicator),
            "MPI_Comm_create_group");
  MPI_Group_free(&some);
  MPI_Group_free(&all);
  return_errors(communicator);
  return std::make_unique<MpiCommunicator>(std::move(identity), communicator, engine_);
}

void MpiCommunicator::require_host_memory(const ConstTensor& tensor) const {
  require(tensor.device() == DeviceKind::cpu,
          "group {} communicates over MPI, which moves host memory, not memory of {}", name(),
          orchard::name_of(tensor.device()));
}

Communicator::Started MpiCommunicator::start_reduction(Stream& stream, const Reduction& reduction,
                                                       Ticket ticket) {
  require_host_memory(reduction.all);
  require_host_memory(reduction.result);
  stream.synchronize();
  MpiReduction& operation = reductions_.take(place_);
  if (reduction.counts.empty()) {
    operation.all_reduce(reduction.result, ticket);
  } else {
    operation.reduce_scatter(reduction.all, reduction.result, reduction.counts, ticket);
  }
  return &operation;
}

Communicator::Started MpiCommunicator::start_gathering(Stream& stream, const Gathering& gathering,
                                                       Ticket ticket) {
  require_host_memory(gathering.all);
  require_host_memory(gathering.mine);
  stream.synchronize();
  MpiTransfer& operation = take_transfer();
  operation.gather({.mine = static_cast<const std::byte*>(gathering.mine.raw()),
                    .all = static_cast<std::byte*>(gathering.all.raw()),
                    .counts = gathering.counts,
                    .element_bytes = size_of(gathering.all.dtype())},
                   ticket);
  return &operation;
}

Communicator::Started MpiCommunicator::start_broadcast(Stream& stream, Tensor buffer, int root,
                                                       Ticket ticket) {
  require_host_memory(buffer);
  stream.synchronize();
  MpiTransfer& operation = take_transfer();
  operation.broadcast(static_cast<std::byte*>(buffer.raw()), buffer.size_bytes(), root, ticket);
  return &operation;
}

Communicator::Started MpiCommunicator::start_all_to_all(Stream& stream, const AllToAll& rows,
                                                        Ticket ticket) {
  require_host_memory(rows.send);
  require_host_memory(rows.receive);
  stream.synchronize();
  MpiTransfer& operation = take_transfer();
  operation.all_to_all(rows, ticket);
  return &operation;
}

Communicator::Started MpiCommunicator::start_exchange(Stream& stream,
                                                      std::span<const Outgoing> sends,
                                                      std::span<const Incoming> receives,
                                                      Ticket ticket) {
  for (const Outgoing& message : sends) require_host_memory(message.data);
  for (const Incoming& message : receives) require_host_memory(message.data);
  stream.synchronize();
  MpiTransfer& operation = take_transfer();
  operation.exchange(sends, receives, ticket);
  return &operation;
}

void MpiCommunicator::run_barrier(Ticket ticket) {
  MpiTransfer& operation = take_transfer();
  operation.barrier(ticket);
  operation.finish();
}

void MpiCommunicator::run_host_gathering(std::span<const std::byte> mine, std::span<std::byte> all,
                                         Ticket ticket) {
  host_counts_.assign(static_cast<std::size_t>(size()), static_cast<std::int64_t>(mine.size()));
  MpiTransfer& operation = take_transfer();
  operation.gather({.mine = mine.data(), .all = all.data(), .counts = host_counts_}, ticket);
  operation.finish();
}

}  // namespace orchard
