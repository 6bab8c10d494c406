// Pipeline schedules as data: for each rank of a pipeline, the ordered list of what it computes.
//
// The model's chain of blocks is cut into stages, `chunks` of them on each rank. A rank runs its
// list from top to bottom. What it sends and receives follows from the list: a forward needs the
// output of the stage before, a backward the gradient from the stage after, and both are sent as
// soon as they exist, without waiting for the receiver. Two messages of one kind between the same
// two ranks are needed in the order in which they are sent.
//
// Every list runs each kind of action of a chunk in micro-batch order. Parameter gradients are
// added up in forward (head), in the input half (norms) and in the weight half of backward
// (matrices), so every schedule with the same stages adds them in the same order, to the same bits.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace orchard {

enum class PipelineOp : std::uint8_t {
  forward,
  backward_input,   // gradient of the stage's input; the stage before waits for it
  backward_weight,  // gradients of the parameters; nobody waits
  backward,         // both halves as one action; its input gradient leaves at the end
};

struct PipelineAction {
  PipelineOp op = PipelineOp::forward;
  int chunk = 0;  // of the rank's own
  int micro_batch = 0;

  bool operator==(const PipelineAction&) const = default;
  std::string to_string() const;  // "backward_input of micro-batch 3, chunk 0"
};

enum class PipelinePlacement : std::uint8_t {
  wrap,  // stage s on rank s mod p: each chunk runs through all ranks
  vee,   // down the ranks with chunk 0 and back up with chunk 1: first and last stage on rank 0
};

struct StagePlace {
  int rank = 0, chunk = 0;
};

struct PipelineSchedule {
  int ranks = 1, chunks = 1, micro_batches = 1;
  PipelinePlacement placement = PipelinePlacement::wrap;
  std::vector<std::vector<PipelineAction>> actions;  // of each rank
  // Of each rank: the most (micro-batch, chunk) pairs whose forward has begun and whose backward
  // has not ended. What the kind of schedule promises, not a count over the list.
  std::vector<int> saved_bound;

  int stages() const { return ranks * chunks; }
  int stage_at(int rank, int chunk) const;
  StagePlace place_of(int stage) const;
  // Whether the rank's weight halves come apart: a schedule splits all backwards of a rank, or none.
  bool splits_backward(int rank) const;
};

// p ranks, m micro-batches, v chunks a rank, F, B_in and W the times of a rank for one micro-batch.
// The bubble is the longest time that a rank idles between its first and its last action.
enum class ScheduleKind : std::uint8_t {
  // All forwards, then all backwards (Huang et al. 2019). Saves m micro-batches. As long as 1F1B.
  gpipe,
  // One forward, one backward (Narayanan et al. 2019). Rank i saves p - i micro-batches. Bubble
  // (p-1)(F+B_in+W).
  one_forward_one_backward,
  // 1F1B on v chunks a rank (Narayanan et al. 2021). Bubble (p-1)(F+B_in+W)/v where p divides m;
  // rank i saves up to 2(p-1-i) + (v-1)p + 1 chunks of v to the micro-batch.
  interleaved,
  // 1F1B with backward in halves, rank i keeping i weight halves back (Qi et al. 2024). Every rank
  // saves p micro-batches. Bubble (p-1)(F+B_in-W) where m >= p and W <= F, (p-1) B_in where W is
  // longer.
  zero_bubble_h1,
  // Two chunks a rank placed as a vee (Qi et al. 2024). Every rank saves 2p chunks, which is p
  // micro-batches. No bubble where F = B_in = W and m >= 2p - 1.
  zero_bubble_v,
};

inline constexpr ScheduleKind schedule_kinds[] = {
    ScheduleKind::gpipe, ScheduleKind::one_forward_one_backward, ScheduleKind::interleaved,
    ScheduleKind::zero_bubble_h1, ScheduleKind::zero_bubble_v};

std::string_view name_of(ScheduleKind kind);  // as users write it: "1f1b", "zb-v"

// How many chunks a rank has where nothing else is asked for. Only interleaved can have others.
int default_chunks(ScheduleKind kind);

struct ScheduleShape {
  ScheduleKind kind = ScheduleKind::one_forward_one_backward;
  int ranks = 1;
  int chunks = 1;         // interleaved: any number; zero_bubble_v: 2; others: 1
  int micro_batches = 1;  // any number
};

// Throws Error naming the number that the kind cannot have.
PipelineSchedule make_schedule(const ScheduleShape& shape);

}  // namespace orchard
