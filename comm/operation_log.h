// What a process has communicated: counts, bytes and time of every operation by group.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/core/dtype.h"

namespace orchard {

enum class CommOp : std::uint8_t {
  all_reduce,
  reduce_scatter,
  all_gather,
  broadcast,
  all_to_all,
  exchange,
  barrier,
  host,  // values of the host: sums, maxima, gathered counts
};
inline constexpr std::size_t comm_ops = 8;

std::string_view name_of(CommOp op);

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
    std::int64_t record = 0;
    std::int64_t enqueued_ns = 0;
  };

  // Groups of one name and the same ranks share their statistics and their sequence.
  GroupId add_group(std::string_view name, std::span<const int> members);

  Ticket enqueued(GroupId group, CommOp op, DType dtype, std::size_t bytes);
  void started(const Ticket& ticket);
  void ended(const Ticket& ticket);

  OperationStatistics statistics(GroupId group, CommOp op) const;
  // Over all groups of this name.
  OperationStatistics statistics(std::string_view name, CommOp op) const;

 private:
  struct Group {
    std::string name;
    std::vector<int> members;
    std::array<OperationStatistics, comm_ops> statistics;
    std::int64_t collectives = 0, exchanges = 0;
  };
  std::vector<Group> groups_;
};

}  // namespace orchard
