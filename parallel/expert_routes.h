// The routes that a dispatcher makes: within one rank, between ranks directly, and by node.
#pragma once

#include "parallel/expert_dispatcher.h"
#include "parallel/expert_journey.h"
#include "parallel/table_staging.h"

namespace orchard {

// One rank holds all experts: the owner's rows are the experts', which read their tokens in x.
class LocalRoutes final : public ExpertRoutes {
 public:
  LocalRoutes(Stream& stream, Arena& arena, ConstTensor experts, std::int64_t experts_count);

  ExpertTransfer dispatch(Stream&, Arena&, ConstTensor x) const override;
  ExpertTransfer collect(Stream&, Arena&, ConstTensor rows) const override;
  ExpertTransfer distribute(Stream&, Arena&, ConstTensor rows) const override;
};

// What a rank knows of its own tokens before it hears of the others'.
struct ExpertSends {
  ConstTensor targets;      // i32 [tokens, slots]
  ConstTensor slot;         // i32 [tokens, slots]
  ConstTensor source;       // i32 [its rows]: token of each of the owner's rows, -1: zeros
  ConstTensor offsets;      // i32 [targets + 1]: first of its rows for each target
  ConstTensor node_source;  // i32 [tokens · slots]: token of each row by (node, token)
  // Rows that each target is sent, zeros behind those of choices; 0: those of choices alone.
  std::int64_t target_rows = 0;
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

// Where tables go, and through which host memory.
struct TableLoader {
  Stream& stream;
  Arena& arena;
  TableStaging& staging;

  ConstTensor operator()(std::span<const std::int32_t> table) const {
    return staging.load(stream, arena, table);
  }
  ConstTensor operator()(const std::vector<RowRun>& runs) const;
  LoadedJourney operator()(Journey journey) const;
};

// What follows from the traffic alone: a row's way for each choice, and where the experts find
// theirs. Lives as long as tensors of the arena.
struct RowWays {
  RowWays(const TableLoader& load, const ExpertPlacement& placement, const ExpertTraffic& traffic,
          ExpertWay way);

  LoadedJourney out, back;
  ConstTensor row_offsets;       // i32 [local experts + 1]
  std::int64_t expert_rows = 0;  // the last of them
};

// The ways where every rank sends each target `rows` rows, always: made once.
struct FixedWays {
  FixedWays(Stream& stream, TableStaging& staging, const ExpertPlacement& placement,
            std::int64_t rows, ExpertWay way)
      : memory(stream.device()),
        ways({stream, memory, staging}, placement, ExpertTraffic::even(placement, rows), way) {}

  Arena memory;
  RowWays ways;
};

// A row for each choice, whichever way `ways` say.
class DirectRoutes : public ExpertRoutes {
 public:
  DirectRoutes(const ExpertSends& sends, const ExpertLinks& links,
               std::shared_ptr<const RowWays> ways);

  ExpertTransfer dispatch(Stream&, Arena&, ConstTensor x) const override;
  ExpertTransfer collect(Stream&, Arena&, ConstTensor rows) const override;
  ExpertTransfer distribute(Stream&, Arena&, ConstTensor rows) const override;

 protected:
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

  std::shared_ptr<const RowWays> ways_;
};

// Rows go by node; on dispatch a token crosses to a node once, with its targets beside it.
class NodeRoutes final : public DirectRoutes {
 public:
  NodeRoutes(const TableLoader& load, const ExpertPlacement& placement,
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
