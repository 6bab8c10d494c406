// The routes that a dispatcher makes: within one rank, between ranks directly, and by node.
#pragma once

#include "parallel/expert_dispatcher.h"
#include "parallel/expert_journey.h"

namespace orchard {

// One rank holds all experts: the owner's rows are the experts'.
class LocalRoutes final : public ExpertRoutes {
 public:
  LocalRoutes(Stream& stream, Arena& arena, ConstTensor experts, std::int64_t experts_count);

  ExpertTransfer dispatch(Stream&, Arena&, ConstTensor x) const override;
  ExpertTransfer collect(Stream&, Arena&, ConstTensor rows) const override;
  ExpertTransfer distribute(Stream&, Arena&, ConstTensor rows) const override;

 private:
  ConstTensor source_;
};

// What a rank knows of its own tokens before it hears of the others'.
struct ExpertSends {
  ConstTensor targets;      // i32 [tokens, slots]
  ConstTensor slot;         // i32 [tokens, slots]
  ConstTensor source;       // i32 [tokens · slots]: token of each of the owner's rows
  ConstTensor offsets;      // i32 [targets + 1]: first of its rows for each target
  ConstTensor node_source;  // i32 [tokens · slots]: token of each row by (node, token)
};

// The groups that messages travel in, and how much may arrive.
struct ExpertLinks {
  Communicator* layer = nullptr;
  Communicator* node = nullptr;  // null where no way is by node
  Overlap overlap = Overlap::yes;
  std::int64_t room = 0;  // rows of every buffer in which rows of others arrive
};

// A journey with its runs on the device.
struct LoadedJourney {
  Journey journey;
  std::vector<ConstTensor> hop_runs;  // by hop; absent: none
  ConstTensor arrival;
};

class DirectRoutes : public ExpertRoutes {
 public:
  DirectRoutes(Stream& stream, Arena& arena, const ExpertPlacement& placement,
               const ExpertTraffic& traffic, const ExpertSends& sends, const ExpertLinks& links)
      : DirectRoutes(stream, arena, placement, traffic, sends, links, ExpertWay::direct) {}

  ExpertTransfer dispatch(Stream&, Arena&, ConstTensor x) const override;
  ExpertTransfer collect(Stream&, Arena&, ConstTensor rows) const override;
  ExpertTransfer distribute(Stream&, Arena&, ConstTensor rows) const override;

 protected:
  DirectRoutes(Stream& stream, Arena& arena, const ExpertPlacement& placement,
               const ExpertTraffic& traffic, const ExpertSends& sends, const ExpertLinks& links,
               ExpertWay way);

  ConstTensor load(Stream& stream, Arena& arena, const std::vector<RowRun>& runs) const;
  LoadedJourney load(Stream& stream, Arena& arena, Journey journey) const;
  // Sends `rows` on its journey. The result has `room` rows, of which the first have come.
  ExpertTransfer start(Stream& stream, Arena& arena, const LoadedJourney& way, ConstTensor rows,
                       std::int64_t room) const;

  ExpertSends sends_;
  ExpertLinks links_;

 private:
  struct Departure {
    Tensor arriving;  // [room, ...]
    Pending pending;
  };
  Departure depart(Stream& stream, Arena& arena, const Hop& hop, ConstTensor runs, ConstTensor rows,
                   std::int64_t room) const;

  std::vector<std::int32_t> host_offsets_;  // where the copy to the device reads from
  LoadedJourney out_, back_;
};

// Rows go by node; on dispatch a token crosses to a node once, with its targets beside it.
class NodeRoutes final : public DirectRoutes {
 public:
  NodeRoutes(Stream& stream, Arena& arena, const ExpertPlacement& placement,
             const ExpertTraffic& traffic, const ExpertSends& sends, const ExpertLinks& links,
             ConstTensor own_node_table);

  ExpertTransfer dispatch(Stream&, Arena&, ConstTensor x) const override;

 private:
  // The rows that the targets on this node are sent of the tokens that came to it.
  Tensor unfold(Stream& stream, Arena& arena, ConstTensor packed, ConstTensor x) const;

  ConstTensor own_node_table_;
  std::int64_t node_targets_, tokens_;
  LoadedJourney to_node_, unfolded_;
};

}  // namespace orchard
