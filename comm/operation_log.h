// What a process has communicated: counts, bytes and time of every operation by group, and a ring
// of the last operations.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "comm/flight_recorder.h"

namespace orchard {

struct OperationStatistics {
  std::int64_t calls = 0;
  // Of this rank's largest buffer in each call: all of the buffer that is reduced, scattered or
  // gathered; for all-to-all and exchange what is sent, to itself too.
  std::int64_t bytes = 0;
  double seconds = 0;  // from the call to the end of the operation, summed over calls

  OperationStatistics& operator+=(const OperationStatistics& other);
};

// One for all groups of a process; used by the thread that communicates.
class OperationLog {
 public:
  using GroupId = std::int32_t;

  // An operation that has been asked for and has not ended.
  struct Ticket {
    GroupId group = 0;
    CommOp op = CommOp::barrier;
    // Of the operation among the collectives of its group, from 0, the same on all ranks; for
    // exchanges a count of its own, of this process.
    std::int64_t sequence = 0;
    std::int64_t record = 0;  // its number in the ring
    // Of an operation of a graph, which is logged where the graph is replayed.
    static constexpr std::int64_t unlogged = -1;
    std::int64_t enqueued_ns = 0;
  };

  OperationLog(int world_rank, int world_size) : recorder_(world_rank, world_size) {}

  // Groups of one name and the same ranks share their statistics and their sequence.
  GroupId add_group(std::string_view name, std::span<const int> members);

  struct Request {
    CommOp op = CommOp::barrier;
    DType dtype = DType::u8;
    std::size_t bytes = 0;
    int peer = -1;  // world rank that an exchange waits for first
  };
  Ticket enqueued(GroupId group, const Request& request);
  void started(const Ticket& ticket);
  void ended(const Ticket& ticket);

  // "all-reduce 17 of group dp".
  std::string describe(const Ticket& ticket) const;

  OperationStatistics statistics(GroupId group, CommOp op) const;
  // Over all groups of this name.
  OperationStatistics statistics(std::string_view name, CommOp op) const;

  FlightRecorder& recorder() { return recorder_; }

 private:
  struct Group {
    std::string name;
    std::vector<int> members;
    std::int32_t recorded_as = 0;
    std::array<OperationStatistics, comm_ops> statistics;
    std::int64_t collectives = 0, exchanges = 0;
  };
  std::vector<Group> groups_;
  FlightRecorder recorder_;
};

}  // namespace orchard
