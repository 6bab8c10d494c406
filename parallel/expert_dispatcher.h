// Brings tokens to their experts and what the experts made of them back.
//
//   routes = dispatcher.plan(...)                       once a layer and direction: where every row goes
//   rows = routes.dispatch(x).finish()                  to the experts, padded
//   results = routes.collect(results).finish()          back to the tokens' owners, not yet reduced
//   CombineForward{.rows = results, .slot = routes.slot(), ...}
//
// and backward, where the gradient of `collect` is `distribute`, and that of `dispatch` is `collect`
// with a sum over each token's choices (DispatchBackward):
//
//   d_results = routes.distribute(d_owned).finish()     CombineBackward's rows
//   d_rows = routes.collect(d_rows).finish()
//
// Rows are never changed on their way, so whichever way they take, the result has the same bits. On one
// rank none goes anywhere: the experts' products find theirs in x, by source().
//
// A layer on several ranks costs each rank one all-gather of its counts and one wait for them on the
// host, then one all-to-all (by node: three) for dispatch, collect and distribute each. Where the most
// rows that a rank can have for a target are known, every message has room for that many, zeros
// behind those that there are: then nothing is counted and the host waits for nothing, at the price of
// the zeros. By node such a message has a row for each choice, as those of results have; counted ones
// bring a token once to a node.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "kernels/device/arena.h"
#include "kernels/device/device.h"
#include "parallel/expert_placement.h"
#include "parallel/overlap.h"
#include "parallel/parallel_context.h"

namespace orchard {

// Rows under way.
class [[nodiscard]] ExpertTransfer {
 public:
  explicit ExpertTransfer(ConstTensor arrived) : arrived_(arrived) {}
  ExpertTransfer(Pending pending, std::function<ConstTensor(Stream&)> unload)
      : pending_(std::move(pending)), unload_(std::move(unload)) {}

  // Later work on the stream sees the rows. Once.
  ConstTensor finish(Stream& stream) {
    pending_.wait(stream);
    return unload_ ? unload_(stream) : arrived_;
  }
  // Waits for the message under way, if nothing is to overlap with it.
  void settle(Stream& stream) { pending_.wait(stream); }

 private:
  Pending pending_;
  std::function<ConstTensor(Stream&)> unload_;  // what is left to do once the message is there
  ConstTensor arrived_;
};

// The ways of one part of a micro-batch. All ranks of the group call the same members in the same
// order. Tensors come from the arena and live until it is rewound; the routes live as long as what
// they started.
class ExpertRoutes {
 public:
  virtual ~ExpertRoutes() = default;
  ExpertRoutes(const ExpertRoutes&) = delete;
  ExpertRoutes& operator=(const ExpertRoutes&) = delete;

  // i32 [tokens, k · parts]: where the owner has the row of each choice.
  ConstTensor slot() const { return slot_; }
  // i32 [local experts + 1]: multiples of row_multiple, into the experts' rows.
  ConstTensor row_offsets() const { return row_offsets_; }
  // i32 [the experts' rows]: the token of each, -1 for padding, where dispatch leaves the rows in x.
  ConstTensor source() const { return source_; }
  // Present where the owner's rows are padded, as CombineBackward takes them.
  ConstTensor padded_source() const { return padded_source_; }
  ConstTensor padded_offsets() const { return padded_offsets_; }

  // x [tokens, hidden] -> the experts' rows [at least those in use, hidden]; x itself, of which source
  // says the rest, where that is present.
  virtual ExpertTransfer dispatch(Stream&, Arena&, ConstTensor x) const = 0;
  // The experts' rows -> the owner's [its rows, hidden].
  virtual ExpertTransfer collect(Stream&, Arena&, ConstTensor rows) const = 0;
  // The owner's rows -> the experts', with zeros for padding.
  virtual ExpertTransfer distribute(Stream&, Arena&, ConstTensor rows) const = 0;

 protected:
  ExpertRoutes() = default;
  ConstTensor slot_, row_offsets_, source_, padded_source_, padded_offsets_;
};

enum class ExpertDispatch : std::uint8_t {
  automatic,  // by node where messages between nodes would be small
  direct,
  by_node,
};

// What is sent to experts that have a capacity.
enum class ExpertMessages : std::uint8_t {
  fixed,    // as many rows as can be at most, zeros behind those that there are: nobody waits
  counted,  // the rows that there are, as without a capacity: the host waits for their counts
};

struct ExpertDispatchOptions {
  ExpertDispatch dispatch = ExpertDispatch::automatic;
  // With `automatic`: the mean message from a rank to a rank of another node below which messages
  // of a node are put together. A message of this size takes a 100 Gbit/s network some 20 us, ten
  // times what starting it takes; putting together costs two more copies inside the node.
  std::int64_t small_message_bytes = 256 << 10;
  Overlap overlap = Overlap::yes;  // no: every message is waited for when it starts
  int chunks = 1;                  // parts in which a layer sends a rank's rows
  ExpertMessages messages = ExpertMessages::fixed;
};

// What a layer's tokens want, in one or more parts.
struct ExpertChoices {
  std::span<const ConstTensor> experts;  // of each part: i32 [tokens, k], -1: no expert
  std::int64_t row_bytes = 0;            // of x
  // Rows that any rank can have for a target in any part, the same number on all ranks. 0: not known
  std::int64_t most_rows = 0;
};

class ExpertTraffic;
enum class ExpertWay : std::uint8_t;
struct ExpertHostMemory;
struct ExpertSends;
struct FixedWays;

class ExpertDispatcher {
 public:
  // One rank that holds all experts.
  explicit ExpertDispatcher(std::int64_t experts);
  ~ExpertDispatcher();
  // `ranks` is the group of the placement; it must outlive the dispatcher. All of its ranks call
  // together: those of a node make a group of their own where the way may be by node.
  ExpertDispatcher(Device& device, Stream& stream, const ExpertPlacement& placement,
                   Communicator& ranks, const ExpertDispatchOptions& options = {});

  // Of the group of `ranks` that holds the experts of a layer together; null for a model without
  // experts. All of the group's ranks call together.
  static std::unique_ptr<ExpertDispatcher> of(Device& device, Stream& stream,
                                              const ParallelContext& ranks, std::int64_t experts,
                                              const ExpertDispatchOptions& options = {});

  const ExpertPlacement& placement() const { return placement_; }
  const ExpertDispatchOptions& options() const { return options_; }

  using Plan = std::vector<std::shared_ptr<const ExpertRoutes>>;
  // The routes of each part.
  Plan plan(Stream& stream, Arena& arena, const ExpertChoices& choices);

  // Called with a message for the log when rows of messages or experts outgrow what they had.
  void on_growth(std::function<void(const std::string&)> listener) {
    on_growth_ = std::move(listener);
  }
  std::int64_t growths() const { return growths_; }
  // How often plan() gave what no graph can hold: rows that were counted, for whose counts the host
  // waits, or ways by node, with messages of two groups.
  std::int64_t plans_beside_graphs() const { return plans_beside_graphs_; }

 private:
  // With messages of a fixed size, and of counted rows.
  Plan plan_fixed(Stream& stream, Arena& arena, const ExpertChoices& choices);
  Plan plan_counted(Stream& stream, Arena& arena, const ExpertChoices& choices);
  // Sorts this rank's choices by where they go; `offsets` are what the others need to know.
  ExpertSends sort(Stream& stream, Arena& arena, ConstTensor experts, Tensor offsets) const;
  // The same by target alone, with `target_rows` rows for each, or 0: see ExpertSends.
  ExpertSends sort_by_target(Stream& stream, Arena& arena, ConstTensor experts, Tensor offsets,
                             std::int64_t target_rows) const;
  // Of rows of such traffic.
  ExpertWay way_of(const ExpertTraffic& traffic, std::int64_t row_bytes) const;
  // Room for at least `rows` rows that arrive on this rank: as much as ever before, so that memory
  // follows the largest load, not each one.
  std::int64_t room_for(std::int64_t rows, std::int64_t even_share);

  ExpertPlacement placement_;
  ExpertDispatchOptions options_;
  Communicator* ranks_ = nullptr;
  std::unique_ptr<Communicator> node_ranks_;  // where the way may be by node
  Buffer tables_;
  ConstTensor target_table_, node_table_, own_node_table_;
  std::unique_ptr<ExpertHostMemory> host_;  // where there are messages
  std::map<std::pair<std::int64_t, ExpertWay>, std::shared_ptr<const FixedWays>>
      fixed_;  // by rows for a target and way
  std::int64_t room_ = 0, growths_ = 0, plans_beside_graphs_ = 0;
  std::function<void(const std::string&)> on_growth_;
};

}  // namespace orchard
