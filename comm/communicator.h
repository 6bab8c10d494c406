// Communication among the ranks of a group: one interface for MPI, for one process alone, and for
// libraries that live on a GPU.
//
// Buffers are tensors of the group's device. An operation is ordered after the work queued on the
// stream before it, and returns a handle at once: until Pending::wait its buffers belong to it.
// Operations of one group overlap with each other and with computation.
//
// Every rank of a group calls the same collectives in the same order with matching sizes.
// `exchange` alone is for those who have something to send or to receive.
//
// Sums are taken in fp32 in rank order, ((x0 + x1) + x2) + ..., whatever the size of the buffer and
// the place of an element in it, and rounded once to the buffer's type. So they are the same on all
// ranks and in every run, and cutting a buffer into several changes no bit.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "comm/operation_log.h"
#include "comm/pending.h"
#include "kernels/core/tensor.h"

namespace orchard {

class Device;
class Graph;
class Stream;

// Rows of uneven numbers from every rank to every rank. Row counts are by rank of the group and
// known to the host: what rank i sends to rank j, rank j receives from rank i. The rows for rank 0
// come first, then those for rank 1.
struct AllToAll {
  ConstTensor send;  // [sum of send_rows, ...]
  Tensor receive;    // [sum of receive_rows, ...], rows of the same size and type
  std::span<const std::int64_t> send_rows, receive_rows;
};

// Parts of an exchange. Messages between two ranks of a group arrive in the order in which they
// were sent. Traffic that may overtake other traffic needs a group of its own.
struct Outgoing {
  ConstTensor data;
  int to = 0;  // rank of the group
};
struct Incoming {
  Tensor data;
  int from = 0;
};

class Communicator {
 public:
  virtual ~Communicator();
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  // As its maker called it: "world", "tp", "ep".
  const std::string& name() const { return name_; }
  int rank() const { return rank_; }  // place of this process in the group
  int size() const { return static_cast<int>(members_.size()); }
  // The world ranks of the group, by place.
  std::span<const int> members() const { return members_; }
  // Which node each member runs on. Nodes are numbered from 0 over the world.
  std::span<const int> nodes() const { return nodes_; }

  // The group of the ranks at these places of this one, in this order. All of them call it, in the
  // same order among their groups; nobody else does. The group must not outlive this one.
  std::unique_ptr<Communicator> make_group(std::string_view name, std::span<const int> places);

  // buffer = sum over ranks of buffer. f32 or bf16.
  Pending all_reduce_sum(Stream& stream, Tensor buffer);

  // mine = sum over ranks of their all[place of this rank]; `all` is cut by `counts`, elements for
  // each rank, or evenly where there are none. f32 or bf16. `mine` may be that very part of `all`;
  // the rest of `all` stays as it is.
  Pending reduce_scatter_sum(Stream& stream, Tensor mine, ConstTensor all,
                             std::span<const std::int64_t> counts = {});

  // all = `mine` of rank 0, then of rank 1, ...; `counts` as above. Any dtype. `mine` may be this
  // rank's part of `all`.
  Pending all_gather(Stream& stream, Tensor all, ConstTensor mine,
                     std::span<const std::int64_t> counts = {});

  // buffer of every rank = buffer of `root`. Any dtype.
  Pending broadcast(Stream& stream, Tensor buffer, int root);

  // Any dtype.
  Pending all_to_all(Stream& stream, const AllToAll& rows);

  // All messages at once, so that two ranks may send to each other. Any dtype. A rank may send to
  // itself.
  Pending exchange(Stream& stream, std::span<const Outgoing> sends,
                   std::span<const Incoming> receives);

  // Returns when every rank has called it.
  void barrier();

  // Host values, for metrics and decisions that all ranks must take alike: they return with the
  // result. values = sum in rank order, or largest, over ranks.
  void sum_on_host(std::span<double> values);
  void max_on_host(std::span<double> values);
  // all = `mine` of rank 0, then of rank 1, ...: numbers that shapes follow from.
  void all_gather_on_host(std::span<const std::int64_t> mine, std::span<std::int64_t> all);

  // Whether graphs of this device can hold operations: where streams carry them out.
  virtual bool is_captured_on(const Device&) const { return false; }
  // As Stream::capture, of work with collectives of this group, and of no other: their messages are
  // sent in each replay. Every one must be waited for within. All ranks of the group capture the same
  // together, and replay what they captured together, in the same order among the group's collectives;
  // none sends by a graph what another sends without. The log knows a replay, as one operation, not what
  // is in it. The group must outlive the graph. Throws Error where nothing is captured.
  virtual std::unique_ptr<Graph> capture(Stream& stream, const std::function<void()>& work);

  // The last operation of this group, as messages name it: "all-reduce 17 of group dp".
  std::string last_operation() const;
  std::int64_t last_number() const { return last_.sequence; }

  // Lets operations under way advance where nothing but the host moves them: for long computations.
  virtual void progress() {}

  // What groups of this name and these ranks have done.
  OperationStatistics statistics(CommOp op) const { return log_->statistics(log_group_, op); }
  // What every group of the job has done.
  OperationLog& log() const { return *log_; }

 protected:
  struct Identity {
    std::string name;
    int rank = 0;
    std::vector<int> members = {0}, nodes = {0};
    std::shared_ptr<OperationLog> log;
  };
  explicit Communicator(Identity identity);

  // Operations are recorded from here on, and neither numbered nor logged; the end returns what a
  // replay of them is.
  void begin_recording();
  OperationLog::Request end_recording();
  OperationLog::Ticket begin(const OperationLog::Request& request);

  const std::shared_ptr<OperationLog>& shared_log() const { return log_; }

  // An operation whose arguments have been checked. `ticket` identifies it in the log: the backend
  // reports when it starts and ends. Counts are never absent. Returns null when it is done.
  struct Reduction {
    ConstTensor all;
    Tensor result;                         // all of `all` (all-reduce), or this rank's part
    std::span<const std::int64_t> counts;  // empty: an all-reduce
  };
  struct Gathering {
    Tensor all;
    ConstTensor mine;
    std::span<const std::int64_t> counts;
  };
  using Started = Pending::Operation*;
  using Ticket = OperationLog::Ticket;

 private:
  virtual std::unique_ptr<Communicator> start_group(Identity identity,
                                                    std::span<const int> places) = 0;
  virtual Started start_reduction(Stream& stream, const Reduction& reduction, Ticket ticket) = 0;
  virtual Started start_gathering(Stream& stream, const Gathering& gathering, Ticket ticket) = 0;
  virtual Started start_broadcast(Stream& stream, Tensor buffer, int root, Ticket ticket) = 0;
  virtual Started start_all_to_all(Stream& stream, const AllToAll& rows, Ticket ticket) = 0;
  virtual Started start_exchange(Stream& stream, std::span<const Outgoing> sends,
                                 std::span<const Incoming> receives, Ticket ticket) = 0;
  // These two block. `mine` is as long on every rank.
  virtual void run_barrier(Ticket ticket) = 0;
  virtual void run_host_gathering(std::span<const std::byte> mine, std::span<std::byte> all,
                                  Ticket ticket) = 0;

  void gather_on_host(std::span<const std::byte> mine, std::span<std::byte> all);
  void check_counts(std::string_view what, std::span<const std::int64_t> counts, std::int64_t mine,
                    std::int64_t all) const;

  std::string name_;
  int rank_;
  std::vector<int> members_, nodes_;
  std::shared_ptr<OperationLog> log_;
  OperationLog::GroupId log_group_;
  Ticket last_;
  std::optional<OperationLog::Request> recorded_;  // while operations are
  std::vector<std::int64_t> even_counts_;
  std::vector<double> host_values_;
};

// The group of this process alone: works without MPI, and every operation does what it does among
// many.
std::unique_ptr<Communicator> make_single_communicator();

}  // namespace orchard
