#include "parallel/pipeline_schedule.h"

#include <algorithm>
#include <array>

#include "kernels/core/error.h"

namespace orchard {
namespace {

using Op = PipelineOp;

// The list of one rank as it grows. Each kind of action of a chunk counts its micro-batches by
// itself: that is the order all lists must keep.
class ActionList {
 public:
  void add(Op op, int chunk = 0) { actions_.push_back({op, chunk, count(op, chunk)++}); }
  void add(Op op, int chunk, int times) {
    for (int i = 0; i < times; ++i) add(op, chunk);
  }
  int done(Op op, int chunk = 0) { return count(op, chunk); }
  std::vector<PipelineAction> take() { return std::move(actions_); }

 private:
  int& count(Op op, int chunk) {
    std::vector<int>& counts = counts_[static_cast<std::size_t>(op)];
    if (counts.size() <= static_cast<std::size_t>(chunk)) counts.resize(chunk + 1u);
    return counts[static_cast<std::size_t>(chunk)];
  }

  std::vector<PipelineAction> actions_;
  std::array<std::vector<int>, 4> counts_;
};

std::vector<PipelineAction> gpipe(int m) {
  ActionList list;
  list.add(Op::forward, 0, m);
  list.add(Op::backward, 0, m);
  return list.take();
}

std::vector<PipelineAction> one_forward_one_backward(int p, int rank, int m) {
  ActionList list;
  const int ahead = std::min(m, p - 1 - rank);  // forwards that run before the first backward
  list.add(Op::forward, 0, ahead);
  for (int k = 0; k < m; ++k) {
    if (list.done(Op::forward) < m) list.add(Op::forward);
    list.add(Op::backward);
  }
  return list.take();
}

// Micro-batches go in groups of p: a group's forwards run through chunk 0, 1, ..., its backwards
// through chunk v-1, v-2, .... `m` is a multiple of p.
std::vector<PipelineAction> interleaved(int p, int v, int rank, int m) {
  ActionList list;
  const auto chunk_of = [&](int index) { return index / p % v; };
  const int total = m * v;
  const int ahead = std::min(total, 2 * (p - 1 - rank) + (v - 1) * p);
  for (int k = 0; k < ahead; ++k) list.add(Op::forward, chunk_of(k));
  for (int k = 0; k < total; ++k) {
    if (k + ahead < total) list.add(Op::forward, chunk_of(k + ahead));
    list.add(Op::backward, v - 1 - chunk_of(k));
  }
  return list.take();
}

// 1F1B whose forwards start one earlier. Rank i runs the weight half of a micro-batch i rounds after
// the input half, so that every rank has p micro-batches alive. The ranks below, with nothing kept
// back, send gradients up sooner than 1F1B would; what the upper ranks kept back fills the end.
std::vector<PipelineAction> zero_bubble_h1(int p, int rank, int m) {
  ActionList list;
  list.add(Op::forward, 0, std::min(m, p - rank));
  for (int k = 0; k < m; ++k) {
    list.add(Op::backward_input);
    if (k >= rank) list.add(Op::backward_weight);
    if (list.done(Op::forward) < m) list.add(Op::forward);
  }
  list.add(Op::backward_weight, 0, std::min(m, rank));
  return list.take();
}

// With actions of one unit each, the first micro-batch reaches the tip of the vee (rank p-1) after
// p units and is back at rank i another p-1-i later: 2(p-i)-1 forwards of chunk 0 fill that time.
// From then on chunk 1 alternates with chunk 0 until, on all ranks in the same number of units after
// their start, gradients come down with chunk 1. In the steady state the six actions of a
// micro-batch follow each other. At the end rank i keeps back i weight halves of either chunk, which
// fill the time the last gradients take. `m` is at least 2p - 1.
std::vector<PipelineAction> zero_bubble_v(int p, int rank, int m) {
  ActionList list;
  const auto backward = [&](int chunk) {
    list.add(Op::backward_input, chunk);
    list.add(Op::backward_weight, chunk);
  };
  list.add(Op::forward, 0, 2 * (p - rank) - 1);
  for (int k = 0; k < rank; ++k) {
    list.add(Op::forward, 1);
    list.add(Op::forward, 0);
  }
  for (int k = 0; k < p - rank; ++k) {
    list.add(Op::forward, 1);
    backward(1);
  }
  while (list.done(Op::forward, 1) < m) {
    if (list.done(Op::forward, 0) < m) list.add(Op::forward, 0);
    backward(0);
    list.add(Op::forward, 1);
    backward(1);
  }
  for (int k = 0; k < rank; ++k) {
    list.add(Op::backward_input, 0);
    list.add(Op::backward_input, 1);
  }
  for (int k = 0; k < p - rank; ++k) backward(0);
  list.add(Op::backward_weight, 1, m - list.done(Op::backward_weight, 1));
  list.add(Op::backward_weight, 0, m - list.done(Op::backward_weight, 0));
  return list.take();
}

// The smallest number of micro-batches, not below the shape's, for which the kind has a pattern.
int padded_micro_batches(const ScheduleShape& s) {
  if (s.kind == ScheduleKind::interleaved)
    return (s.micro_batches + s.ranks - 1) / s.ranks * s.ranks;
  if (s.kind == ScheduleKind::zero_bubble_v) return std::max(s.micro_batches, 2 * s.ranks - 1);
  return s.micro_batches;
}

std::vector<PipelineAction> make_actions(const ScheduleShape& s, int rank, int m) {
  switch (s.kind) {
    case ScheduleKind::gpipe:
      return gpipe(m);
    case ScheduleKind::one_forward_one_backward:
      return one_forward_one_backward(s.ranks, rank, m);
    case ScheduleKind::interleaved:
      // One chunk needs no longer warm-up than 1F1B.
      return s.chunks == 1 ? one_forward_one_backward(s.ranks, rank, m)
                           : interleaved(s.ranks, s.chunks, rank, m);
    case ScheduleKind::zero_bubble_h1:
      return zero_bubble_h1(s.ranks, rank, m);
    case ScheduleKind::zero_bubble_v:
      return zero_bubble_v(s.ranks, rank, m);
  }
  return {};
}

int saved_bound(const ScheduleShape& s, int rank) {
  const int p = s.ranks, v = s.chunks, all = s.micro_batches * v;
  switch (s.kind) {
    case ScheduleKind::gpipe:
      return all;
    case ScheduleKind::one_forward_one_backward:
      return std::min(all, p - rank);
    case ScheduleKind::interleaved:
      return std::min(all, v == 1 ? p - rank : 2 * (p - 1 - rank) + (v - 1) * p + 1);
    case ScheduleKind::zero_bubble_h1:
      return std::min(all, p);
    case ScheduleKind::zero_bubble_v:
      return std::min(all, 2 * p);
  }
  return all;
}

void require_possible(const ScheduleShape& s) {
  require(s.ranks >= 1, "a pipeline of {} stages: there must be at least one", s.ranks);
  require(s.micro_batches >= 1, "{} micro-batches: a step has at least one", s.micro_batches);
  require(s.chunks >= 1, "{} chunks a rank: there must be at least one", s.chunks);
  if (s.kind == ScheduleKind::interleaved) return;
  const int chunks = default_chunks(s.kind);
  require(s.chunks == chunks, "schedule {} has {} chunk{} a rank, not {}; interleaved takes any",
          name_of(s.kind), chunks, chunks == 1 ? "" : "s", s.chunks);
}

}  // namespace

std::string PipelineAction::to_string() const {
  constexpr std::string_view names[] = {"forward", "backward_input", "backward_weight", "backward"};
  return fmt::format("{} of micro-batch {}, chunk {}", names[static_cast<std::size_t>(op)],
                     micro_batch, chunk);
}

int PipelineSchedule::stage_at(int rank, int chunk) const {
  const bool back = placement == PipelinePlacement::vee && chunk == 1;
  return back ? 2 * ranks - 1 - rank : chunk * ranks + rank;
}

bool PipelineSchedule::splits_backward(int rank) const {
  return std::ranges::any_of(actions[static_cast<std::size_t>(rank)], [](const PipelineAction& a) {
    return a.op == PipelineOp::backward_weight;
  });
}

StagePlace PipelineSchedule::place_of(int stage) const {
  const int chunk = stage / ranks, along = stage % ranks;
  const bool back = placement == PipelinePlacement::vee && chunk == 1;
  return {.rank = back ? ranks - 1 - along : along, .chunk = chunk};
}

std::string_view name_of(ScheduleKind kind) {
  constexpr std::string_view names[] = {"gpipe", "1f1b", "interleaved", "zb-h1", "zb-v"};
  return names[static_cast<std::size_t>(kind)];
}

int default_chunks(ScheduleKind kind) {
  return kind == ScheduleKind::interleaved || kind == ScheduleKind::zero_bubble_v ? 2 : 1;
}

PipelineSchedule make_schedule(const ScheduleShape& shape) {
  require_possible(shape);
  PipelineSchedule schedule{.ranks = shape.ranks,
                            .chunks = shape.chunks,
                            .micro_batches = shape.micro_batches,
                            .placement = shape.kind == ScheduleKind::zero_bubble_v
                                             ? PipelinePlacement::vee
                                             : PipelinePlacement::wrap};
  // A pattern for too many micro-batches loses those that do not exist. Actions wait only for
  // earlier ones of their rank and for others of their own micro-batch, so nothing that remains
  // waits for more than before: still no deadlock, and no more activations. It is the first ones
  // that go: then the shortened round falls into the warm-up, and the steps are shorter than
  // without the last ones.
  const int padded = padded_micro_batches(shape), surplus = padded - shape.micro_batches;
  for (int rank = 0; rank < shape.ranks; ++rank) {
    std::vector<PipelineAction> actions = make_actions(shape, rank, padded);
    for (PipelineAction& action : actions) action.micro_batch -= surplus;
    std::erase_if(actions, [](const PipelineAction& action) { return action.micro_batch < 0; });
    schedule.actions.push_back(std::move(actions));
    schedule.saved_bound.push_back(saved_bound(shape, rank));
  }
  return schedule;
}

}  // namespace orchard
