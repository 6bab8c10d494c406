// The forward and the backward of micro-batches as graphs: where the host queues thousands of short
// kernels, a GPU may wait for it, and a replay is one call.
//
// A graph repeats kernels with the arguments that they were recorded with, sizes and addresses. So
// there is a pair of graphs for each shape that micro-batches come in, and what differs between two
// of a shape lies in memory: tokens, pixels and offsets, which are uploaded to the same place of the
// arena before every replay, and the scales of the losses. Forward and backward are apart, because
// the losses are copied to the host between them, each micro-batch's to its own memory.
//
// Within a pass nothing may happen but kernels, copies, fills and collectives of one group, whose
// messages have sizes that the host knows beforehand: no listener to gradients, no choices of experts
// that are replayed from elsewhere.
//
// Ranks that send each other messages within a pass replay together or not at all: NCCL takes no
// message that one side sends by a graph and the other without. So they tell each other of every
// micro-batch what it looks like, and their graphs are of the shapes that all of them have at a time. The
// host waits for the other hosts for that, not for the device.
#pragma once

#include <functional>
#include <list>
#include <memory>
#include <vector>

#include "comm/communicator.h"
#include "models/multimodal.h"

namespace orchard {

// The graphs of one shape.
class CapturedPass {
 public:
  // For micro-batches of the shape of pass.batch, in its memory. All that `pass` refers to must
  // outlive it, but for the batch itself, and stay where it is. `group`: whose messages it sends; null:
  // none, this rank works as if it were alone.
  CapturedPass(const MultimodalModel& model, const Pass& pass, Communicator* group);

  // Queue the work on what has been uploaded, recording it the first time.
  void forward();
  void backward();

  // What forward left, in the same memory after every replay.
  const MultimodalModel::Saved& saved() const { return saved_; }

 private:
  void replay(std::unique_ptr<Graph>& graph, std::function<void()> work);

  const MultimodalModel& model_;
  Communicator* group_;
  DeviceBatch batch_;
  Pass pass_;
  MultimodalModel::Saved saved_;
  std::unique_ptr<Graph> forward_, backward_;
};

class PassGraphs {
 public:
  // The model must outlive it, and the group of the ranks whose messages graphs hold; null: there are
  // none. All of the group's ranks call together.
  PassGraphs(const MultimodalModel& model, Communicator* group) : model_(model), group_(group) {}

  // The graphs that run a micro-batch which has just been uploaded into its arena. Null for the first
  // of a shape, which runs without: memory then grows to what the shape needs, and libraries choose
  // their kernels, neither of which may happen in a capture. Where memory that graphs refer to has
  // moved since, on any rank of the group, they are captured anew.
  CapturedPass* find(const Pass& pass);
  // The pass that find gave nothing for has run, forward and backward. Where it had to count rows, none
  // of its shape becomes a graph.
  void ran_plain(const Pass& pass);

  struct Counts {
    std::int64_t plain = 0;  // passes without graphs: the first of their shape, or all that count
    std::int64_t captured = 0;  // passes that were recorded, and then replayed
    std::int64_t replayed = 0;  // passes that were there to be replayed
    bool operator==(const Counts&) const = default;
  };
  const Counts& counts() const { return counts_; }

  // A large model's graphs have thousands of nodes, in memory of the driver. And shapes that are rarer
  // than one micro-batch in so many are hardly worth a capture, which costs the host a plain pass and
  // the making of the graphs.
  static constexpr std::size_t most_shapes = 16;

 private:
  using Numbers = std::vector<std::int64_t>;
  struct Entry {
    Numbers shape;   // all sizes that arguments of kernels follow from, on all ranks of the group
    Numbers places;  // all memory that the graphs refer to and that may move
    std::int64_t plans_before = 0;  // the dispatcher's beside graphs, before the first pass
    bool is_captured = true;        // the first pass had none of these
    std::unique_ptr<CapturedPass> pass;
  };

  // Makes of this rank's numbers those of all ranks of the group, by rank.
  void tell_each_other(Numbers& shape, Numbers& places) const;
  static Numbers shape_of(const Pass& pass);
  static Numbers places_of(const Pass& pass);
  static void drop(Entry& entry, Stream& stream);

  const MultimodalModel& model_;
  Communicator* group_;
  std::list<Entry> entries_;  // the one that was used last comes first
  Counts counts_;
};

}  // namespace orchard
