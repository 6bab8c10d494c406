#include "comm/mpi_communicator.h"

#include <algorithm>
#include <numeric>

#include "comm/single_communicator.h"
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
  if (places.size() == 1) return std::make_unique<SingleCommunicator>(std::move(identity));
  return std::make_unique<MpiCommunicator>(std::move(identity), make_mpi_group(places), engine_);
}

MPI_Comm MpiCommunicator::make_mpi_group(std::span<const int> places) const {
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
  return communicator;
}

StagedOperation& MpiCommunicator::stage(Stream& stream) {
  StagedOperation& staged = staged_.take();
  staged.begin(stream);
  return staged;
}

Communicator::Started MpiCommunicator::start_reduction(Stream& stream, const Reduction& reduction,
                                                       Ticket ticket) {
  StagedOperation& staged = stage(stream);
  MpiReduction& operation = reductions_.take(place_);
  if (reduction.counts.empty()) {
    const Tensor buffer = staged.read_and_written(reduction.result);
    stream.synchronize();
    operation.all_reduce(buffer, ticket);
  } else {
    const ConstTensor all = staged.read(reduction.all);
    const Tensor mine = staged.written(reduction.result);
    stream.synchronize();
    operation.reduce_scatter(all, mine, reduction.counts, ticket);
  }
  return &staged.follow(operation);
}

Communicator::Started MpiCommunicator::start_gathering(Stream& stream, const Gathering& gathering,
                                                       Ticket ticket) {
  StagedOperation& staged = stage(stream);
  const ConstTensor mine = staged.read(gathering.mine);
  const Tensor all = staged.written(gathering.all);
  stream.synchronize();
  MpiTransfer& operation = take_transfer();
  operation.gather({.mine = static_cast<const std::byte*>(mine.raw()),
                    .all = static_cast<std::byte*>(all.raw()),
                    .counts = gathering.counts,
                    .element_bytes = size_of(all.dtype())},
                   ticket);
  return &staged.follow(operation);
}

Communicator::Started MpiCommunicator::start_broadcast(Stream& stream, Tensor buffer, int root,
                                                       Ticket ticket) {
  StagedOperation& staged = stage(stream);
  const Tensor host = rank() == root ? staged.read_and_written(buffer) : staged.written(buffer);
  stream.synchronize();
  MpiTransfer& operation = take_transfer();
  operation.broadcast(static_cast<std::byte*>(host.raw()), host.size_bytes(), root, ticket);
  return &staged.follow(operation);
}

Communicator::Started MpiCommunicator::start_all_to_all(Stream& stream, const AllToAll& rows,
                                                        Ticket ticket) {
  StagedOperation& staged = stage(stream);
  const AllToAll host{.send = staged.read(rows.send),
                      .receive = staged.written(rows.receive),
                      .send_rows = rows.send_rows,
                      .receive_rows = rows.receive_rows};
  stream.synchronize();
  MpiTransfer& operation = take_transfer();
  operation.all_to_all(host, ticket);
  return &staged.follow(operation);
}

Communicator::Started MpiCommunicator::start_exchange(Stream& stream,
                                                      std::span<const Outgoing> sends,
                                                      std::span<const Incoming> receives,
                                                      Ticket ticket) {
  StagedOperation& staged = stage(stream);
  host_sends_.clear();
  host_receives_.clear();
  for (const auto& [data, to] : sends) host_sends_.push_back({staged.read(data), to});
  for (const auto& [data, from] : receives) host_receives_.push_back({staged.written(data), from});
  stream.synchronize();
  MpiTransfer& operation = take_transfer();
  operation.exchange(host_sends_, host_receives_, ticket);
  return &staged.follow(operation);
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
