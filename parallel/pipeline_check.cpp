#include <algorithm>
#include <map>
#include <tuple>

#include "kernels/core/error.h"
#include "parallel/pipeline_simulation.h"

namespace orchard {
namespace {

using Op = PipelineOp;

bool has_input_half(Op op) {
  return op == Op::backward_input || op == Op::backward;
}
bool has_weight_half(Op op) {
  return op == Op::backward_weight || op == Op::backward;
}

// Walks through the list of one rank and counts what each chunk has done.
class RankCheck {
 public:
  RankCheck(const PipelineSchedule& schedule, int rank)
      : schedule_(schedule), rank_(rank), done_(static_cast<std::size_t>(schedule.chunks)) {}

  void take(const PipelineAction& action) {
    if (action.chunk < 0 || action.chunk >= schedule_.chunks || action.micro_batch < 0 ||
        action.micro_batch >= schedule_.micro_batches) {
      refuse(action, "does not exist");
    }
    Done& done = done_[static_cast<std::size_t>(action.chunk)];
    if (action.op == Op::forward) {
      advance(done.forward, schedule_.micro_batches, action);
      ++saved_;
    }
    if (has_input_half(action.op)) advance(done.input, done.forward, action);
    if (has_weight_half(action.op)) {
      advance(done.weight, done.input, action);
      --saved_;
    }
    const int bound = schedule_.saved_bound[static_cast<std::size_t>(rank_)];
    if (saved_ > bound)
      refuse(action, "makes {} saved pairs of micro-batch and chunk, bound {}", saved_, bound);
  }

  void finish() const {
    for (std::size_t c = 0; c < done_.size(); ++c) {
      const int least = std::min({done_[c].forward, done_[c].input, done_[c].weight});
      require(
          least == schedule_.micro_batches,
          "rank {}, chunk {}: {} forwards, {} input halves and {} weight halves of backward are "
          "listed for {} micro-batches",
          rank_, c, done_[c].forward, done_[c].input, done_[c].weight, schedule_.micro_batches);
    }
  }

 private:
  struct Done {
    int forward = 0, input = 0, weight = 0;
  };

  // `ready` micro-batches have what the action needs.
  void advance(int& done, int ready, const PipelineAction& action) const {
    if (action.micro_batch < done) refuse(action, "is listed again");
    if (action.micro_batch > done) {
      refuse(action,
             "comes before that of micro-batch {}; gradients must be added in micro-batch order",
             done);
    }
    if (done >= ready) refuse(action, "is listed before what it needs");
    ++done;
  }

  // Not `require`: naming every action, not only the wrong one, would take most of the time.
  template <class... Args>
  [[noreturn]] void refuse(const PipelineAction& action, fmt::format_string<Args...> why,
                           Args&&... args) const {
    fail("rank {}: {} {}", rank_, action.to_string(),
         fmt::format(why, std::forward<Args>(args)...));
  }

  const PipelineSchedule& schedule_;
  int rank_;
  int saved_ = 0;
  std::vector<Done> done_;
};

enum class Message : std::uint8_t { activation, gradient };

struct Channel {
  int from, to;
  Message message;
  auto operator<=>(const Channel&) const = default;
};

// What goes through a channel: the stage that sent it and the micro-batch.
using Traffic = std::map<Channel, std::vector<std::pair<int, int>>>;

// The messages that cross from a rank to another, in the order in which the lists send them
// (`sent`) or need them.
Traffic traffic(const PipelineSchedule& schedule, bool sent) {
  Traffic result;
  const auto note = [&](int from_stage, int to_stage, Message message, int micro_batch) {
    if (to_stage < 0 || from_stage < 0) return;
    if (to_stage >= schedule.stages() || from_stage >= schedule.stages()) return;
    const int from = schedule.place_of(from_stage).rank, to = schedule.place_of(to_stage).rank;
    if (from != to) result[{from, to, message}].emplace_back(from_stage, micro_batch);
  };
  for (int rank = 0; rank < schedule.ranks; ++rank) {
    for (const PipelineAction& a : schedule.actions[static_cast<std::size_t>(rank)]) {
      const int stage = schedule.stage_at(rank, a.chunk);
      if (a.op == Op::forward) {
        note(sent ? stage : stage - 1, sent ? stage + 1 : stage, Message::activation,
             a.micro_batch);
      } else if (has_input_half(a.op)) {
        note(sent ? stage : stage + 1, sent ? stage - 1 : stage, Message::gradient, a.micro_batch);
      }
    }
  }
  return result;
}

void check_messages(const PipelineSchedule& schedule) {
  const Traffic sent = traffic(schedule, true), needed = traffic(schedule, false);
  for (const auto& [channel, messages] : sent) {
    const auto& wanted = needed.at(channel);
    const auto [s, w] = std::mismatch(messages.begin(), messages.end(), wanted.begin());
    if (s == messages.end()) continue;
    fail(
        "rank {} sends {}s to rank {} in another order than it needs them: that of stage {}, "
        "micro-batch {} where it needs stage {}, micro-batch {}",
        channel.from, channel.message == Message::activation ? "activation" : "gradient",
        channel.to, s->first, s->second, w->first, w->second);
  }
}

}  // namespace

void check_schedule(const PipelineSchedule& schedule) {
  const auto ranks = static_cast<std::size_t>(schedule.ranks);
  require(schedule.actions.size() == ranks && schedule.saved_bound.size() == ranks,
          "a schedule for {} ranks has {} lists and {} bounds", ranks, schedule.actions.size(),
          schedule.saved_bound.size());
  for (std::size_t rank = 0; rank < ranks; ++rank) {
    RankCheck check(schedule, static_cast<int>(rank));
    for (const PipelineAction& action : schedule.actions[rank]) check.take(action);
    check.finish();
  }
  check_messages(schedule);
}

}  // namespace orchard
