// A group of ranks with a GPU each, over NCCL. What is in host memory goes over MPI, which also
// introduces the ranks to each other.
//
// Communication has streams of its own, so that it goes on beside computation; events tie it to the
// caller's stream, and the host waits for nothing. Each operation is put on a stream when it is asked
// for, with one exception: an exchange that only receives is put there when somebody waits for it. Its
// stream would else be stuck until the other side sends, and messages that this rank sends later with
// it. Messages to higher and to lower ranks have a connection each: the ring of an interleaved pipeline
// then has no circle of connections that wait for each other.
//
// Collectives can be captured (NCCL User Guide, "Using NCCL with CUDA Graphs"): the events by which an
// operation enters its lane and comes back pull the lane into the capture and join it again. On a graph
// its nodes are in no order with the lane's own work, so a replay begins after what the lane has, and
// what the lane gets waits for the replay. NCCL demands that all ranks of an operation capture it or
// none does, and that they replay the same capture. It has been seen to make CUDA deadlock where one
// thread launches graphs of several communicators: a graph holds the messages of one group. An event of
// a capture cannot be asked for, nor may any other be while one is under way, so that operations are not
// looked after in it.
//
// Sums: NCCL adds in an order of its own, which depends on the size of the buffer, on its place in the
// ring or tree and on the version. We promise rank order. So, as over MPI, each rank receives the others'
// pieces and adds them up with a kernel of ours; an all-reduce then gathers the sums. Each element crosses
// the wires as often as in NCCL's ring.
#pragma once

#include "comm/mpi_communicator.h"
#include "comm/nccl.h"
#include "comm/nccl_operation.h"

namespace orchard {

class NcclCommunicator final : public MpiCommunicator {
 public:
  // The communicators of a process know of each other's captures.
  struct Capture {
    const NcclCommunicator* by = nullptr;  // who captures now
  };

  NcclCommunicator(Identity identity, MPI_Comm communicator, std::shared_ptr<MpiEngine> engine,
                   const NcclContext& context, std::shared_ptr<Capture> capture);
  ~NcclCommunicator() override;

  void progress() override;
  bool is_captured_on(const Device& device) const override { return &device == &context_.device; }
  std::unique_ptr<Graph> capture(Stream& stream, const std::function<void()>& work) override;
  // Queues a graph that capture() made, which holds operations that amount to `request`.
  void replay(Stream& stream, Graph& graph, const OperationLog::Request& request);

  // Puts the receiving exchanges up to this one on their lanes.
  void issue(NcclOperation& operation);
  // Tells the log of operations that the device has done.
  void settle();

 private:
  static constexpr std::size_t upwards = 0, downwards = 1;  // lanes of messages

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

  NcclLane connect();
  // Whether an operation on these tensors is the device's.
  bool takes(const Stream& stream, std::initializer_list<ConstTensor> tensors) const;
  NcclOperation& begin(Stream& stream, const Ticket& ticket);
  Started end(NcclOperation& operation);

  void all_reduce(const Tensor& buffer);
  void reduce_scatter(const ConstTensor& all, const Tensor& mine,
                      std::span<const std::int64_t> counts);
  // Everybody's pieces_[r] of `all` to rank r, who adds them up in `result`.
  void scatter_and_sum(const ConstTensor& all, const Tensor& result);
  // Rank r's pieces_[r] of `all` to everybody; where all are as long, they follow each other.
  void gather(const Tensor& all);
  // Nothing, unless it has messages for that lane.
  void put_on_lane(NcclOperation& operation, std::size_t number);

  struct Piece {
    std::int64_t begin = 0, end = 0;  // elements
    std::int64_t count() const { return end - begin; }
  };
  struct Copy {
    ConstTensor from;
    Tensor to;
  };

  NcclContext context_;
  std::shared_ptr<Capture> capture_;
  NcclOperation::Owner owner_;
  NcclLane collectives_;
  std::array<NcclLane, 2> messages_;
  OperationPool<NcclOperation> operations_;
  std::vector<NcclOperation*> under_way_;  // in the order in which they were asked for
  std::vector<Piece> pieces_;              // by rank
  std::vector<Copy> to_itself_;            // messages of an exchange
};

}  // namespace orchard
