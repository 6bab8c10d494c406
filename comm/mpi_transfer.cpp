#include "comm/mpi_transfer.h"

#include <algorithm>
#include <cstring>
#include <numeric>

namespace orchard {
namespace {

constexpr int exchange_tag = 0;

// Where the elements of each rank begin.
std::size_t offset_of(std::span<const std::int64_t> counts, int rank) {
  return static_cast<std::size_t>(
      std::accumulate(counts.begin(), counts.begin() + rank, std::int64_t{0}));
}

std::size_t row_bytes(const ConstTensor& rows) {
  std::size_t bytes = size_of(rows.dtype());
  for (int d = 1; d < rows.rank(); ++d) bytes *= static_cast<std::size_t>(rows.dim(d));
  return bytes;
}

// What a rank keeps is copied in blocks: of a longer copy, the C library's memcpy would write around the
// caches, and whoever asked for the rows reads them next.
constexpr std::size_t block_bytes = std::size_t{128} << 10;

void copy_own(std::byte* to, const std::byte* from, std::size_t bytes) {
  if (to == from) return;
  for (std::size_t begin = 0; begin < bytes; begin += block_bytes)
    std::memcpy(to + begin, from + begin, std::min(block_bytes, bytes - begin));
}

}  // namespace

void MpiTransfer::gather(const Gathering& g, const Ticket& ticket) {
  const auto [communicator, rank, size, engine, log] = place();
  const int tag = tag_of(ticket, 0);
  const auto bytes_of = [&](int r) {
    return static_cast<std::size_t>(g.counts[static_cast<std::size_t>(r)]) * g.element_bytes;
  };
  const auto place_in_all = [&](int r) { return g.all + offset_of(g.counts, r) * g.element_bytes; };
  // Each rank turns to its right-hand neighbour first, so that not all of them call on one.
  for (int i = 1; i < size; ++i) {
    const int from = (rank + size - i) % size;
    receive(place_in_all(from), bytes_of(from), from, tag);
  }
  for (int i = 1; i < size; ++i) send(g.mine, bytes_of(rank), (rank + i) % size, tag);
  copy_own(place_in_all(rank), g.mine, bytes_of(rank));
  launch(ticket);
}

void MpiTransfer::all_to_all(const AllToAll& rows, const Ticket& ticket) {
  const auto [communicator, rank, size, engine, log] = place();
  const int tag = tag_of(ticket, 0);
  const std::size_t width = row_bytes(rows.send);
  const auto* const source = static_cast<const std::byte*>(rows.send.raw());
  auto* const destination = static_cast<std::byte*>(rows.receive.raw());
  const auto bytes = [&](std::span<const std::int64_t> counts, int r) {
    return static_cast<std::size_t>(counts[static_cast<std::size_t>(r)]) * width;
  };
  for (int i = 1; i < size; ++i) {
    const int from = (rank + size - i) % size;
    receive(destination + offset_of(rows.receive_rows, from) * width,
            bytes(rows.receive_rows, from), from, tag);
  }
  for (int i = 1; i < size; ++i) {
    const int to = (rank + i) % size;
    send(source + offset_of(rows.send_rows, to) * width, bytes(rows.send_rows, to), to, tag);
  }
  copy_own(destination + offset_of(rows.receive_rows, rank) * width,
           source + offset_of(rows.send_rows, rank) * width, bytes(rows.send_rows, rank));
  launch(ticket);
}

void MpiTransfer::exchange(std::span<const Outgoing> sends, std::span<const Incoming> receives,
                           const Ticket& ticket) {
  for (const Incoming& message : receives) {
    receive(static_cast<std::byte*>(message.data.raw()), message.data.size_bytes(), message.from,
            exchange_tag);
  }
  for (const Outgoing& message : sends) {
    send(static_cast<const std::byte*>(message.data.raw()), message.data.size_bytes(), message.to,
         exchange_tag);
  }
  launch(ticket);
}

void MpiTransfer::broadcast(std::byte* data, std::size_t bytes, int root, const Ticket& ticket) {
  constexpr std::size_t piece = std::size_t{1} << 30;  // MPI counts are ints
  for (std::size_t begin = 0; begin < bytes; begin += piece) {
    check_mpi(MPI_Ibcast(data + begin, static_cast<int>(std::min(piece, bytes - begin)), MPI_BYTE,
                         root, place().communicator, &requests().emplace_back()),
              "MPI_Ibcast");
  }
  launch(ticket);
}

void MpiTransfer::barrier(const Ticket& ticket) {
  check_mpi(MPI_Ibarrier(place().communicator, &requests().emplace_back()), "MPI_Ibarrier");
  launch(ticket);
}

}  // namespace orchard
