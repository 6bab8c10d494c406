// NVIDIA's NCCL as the communicator uses it: the functions as an interface, so that an emulated device
// can stand in (comm/emulated_nccl.h). Only bytes are moved; sums are our own, in rank order.
//
// Calls queue work on the stream and return. Those between group_begin and group_end are one: they
// proceed together, in whatever order the other ranks make theirs.
#pragma once

#include <array>
#include <cstddef>
#include <memory>

namespace orchard {

class Stream;

class NcclLibrary {
 public:
  // What the ranks of a connection know each other by.
  struct Id {
    std::array<std::byte, 128> bytes{};
  };
  // This rank's end of a connection.
  using Handle = void*;
  // Where work goes: a connection is used on one stream.
  struct Lane {
    Handle handle = nullptr;
    Stream* stream = nullptr;
  };

  virtual ~NcclLibrary() = default;
  NcclLibrary() = default;
  NcclLibrary(const NcclLibrary&) = delete;
  NcclLibrary& operator=(const NcclLibrary&) = delete;

  virtual Id make_id() = 0;
  // All ranks of the connection call it, with the id that one of them made.
  virtual Handle connect(const Id& id, int rank, int size) = 0;
  // All ranks, once their work is done.
  virtual void disconnect(Handle handle) noexcept = 0;
  // One rank that gives up.
  virtual void abort(Handle handle) noexcept = 0;
  // Throws Error where work under way has failed.
  virtual void check(Handle handle) = 0;

  virtual void group_begin() = 0;
  virtual void group_end() = 0;
  virtual void send(const Lane& lane, const void* data, std::size_t bytes, int to) = 0;
  virtual void receive(const Lane& lane, void* data, std::size_t bytes, int from) = 0;
  virtual void broadcast(const Lane& lane, void* data, std::size_t bytes, int root) = 0;
  // all = `mine` of rank 0, of rank 1, ..., as many bytes from each. `mine` may lie in its place.
  virtual void all_gather(const Lane& lane, const void* mine, void* all, std::size_t bytes) = 0;
};

// libnccl.so.2, of 2.18 or later. Throws Error, one line, where it is missing or too old. Its streams
// are those of CUDA devices, its ranks have a GPU each.
std::shared_ptr<NcclLibrary> load_nccl();

}  // namespace orchard
