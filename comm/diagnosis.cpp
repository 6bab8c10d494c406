#include "comm/diagnosis.h"

#include <fmt/format.h>

#include <algorithm>

namespace orchard {
namespace {

std::string seconds(std::int64_t ns) {
  return fmt::format("{:.1f} s", 1e-9 * static_cast<double>(ns));
}

std::string last_operation(const FlightLog& log, std::int64_t now_ns) {
  if (log.operations.empty()) return "it has begun no operation";
  if (const FlightOperation* const operation = log.under_way()) {
    return fmt::format("it is in {}, since {}", log.describe(*operation),
                       seconds(now_ns - operation->enqueued_ns));
  }
  const FlightOperation& last = log.operations.back();
  return fmt::format("its last operation, {}, ended {} ago", log.describe(last),
                     seconds(now_ns - last.ended_ns));
}

// How many operations of its kind the rank has begun in the group that the other's is of.
std::int64_t begun(const FlightLog& log, const FlightLog& other, const FlightOperation& operation) {
  const FlightLog::Group& wanted = other.groups[static_cast<std::size_t>(operation.group)];
  for (const FlightLog::Group& group : log.groups) {
    if (group.name == wanted.name && group.members == wanted.members)
      return operation.op == CommOp::exchange ? group.exchanges : group.collectives;
  }
  return 0;
}

// The members of the operation's group that have not begun it.
std::vector<int> missing(const Observation& o, const FlightLog& own,
                         const FlightOperation& operation) {
  if (operation.op == CommOp::exchange)  // each rank counts its own
    return operation.peer < 0 ? std::vector<int>{} : std::vector<int>{operation.peer};
  std::vector<int> ranks;
  for (const int member : own.groups[static_cast<std::size_t>(operation.group)].members) {
    const FlightLog& log = o.ranks[static_cast<std::size_t>(member)].log;
    if (begun(log, own, operation) <= operation.sequence) ranks.push_back(member);
  }
  return ranks;
}

// The oldest operation that is under way on the rank and that others have not begun. Those that all have
// begun may be over: a host that waits for its device hears of no end.
const FlightOperation* blocked_in(const Observation& o, int rank) {
  const FlightLog& log = o.ranks[static_cast<std::size_t>(rank)].log;
  const auto found = std::ranges::find_if(log.operations, [&](const FlightOperation& operation) {
    return operation.is_under_way() && !missing(o, log, operation).empty();
  });
  return found == log.operations.end() ? nullptr : &*found;
}

// The nearest rank that is blocked: this one, or one that it may wait for in an operation that all have
// begun. Hosts run ahead of their devices, and what they have begun may stand in line behind what is
// blocked.
std::optional<int> nearest_blocked(const Observation& o, int rank) {
  std::vector<int> reached = {rank};
  const auto reach = [&](int r) {
    if (std::ranges::find(reached, r) == reached.end()) reached.push_back(r);
  };
  for (std::size_t i = 0; i < reached.size(); ++i) {
    if (blocked_in(o, reached[i]) != nullptr) return reached[i];
    const FlightLog& log = o.ranks[static_cast<std::size_t>(reached[i])].log;
    for (const FlightOperation& operation : log.operations) {
      if (!operation.is_under_way()) continue;
      if (operation.op == CommOp::exchange) {
        if (operation.peer >= 0) reach(operation.peer);
      } else {
        std::ranges::for_each(log.groups[static_cast<std::size_t>(operation.group)].members, reach);
      }
    }
  }
  return {};
}

// Follows who waits for whom from the observer to a rank that waits for nobody else; the last one
// before ranks wait for each other in a circle.
int root_of(const Observation& o) {
  std::vector<bool> seen(o.ranks.size(), false);
  int rank = o.observer;
  while (!seen[static_cast<std::size_t>(rank)]) {
    seen[static_cast<std::size_t>(rank)] = true;
    const std::optional<int> blocked = nearest_blocked(o, rank);
    if (!blocked) break;
    const std::vector<int> next =
        missing(o, o.ranks[static_cast<std::size_t>(*blocked)].log, *blocked_in(o, *blocked));
    const auto idle = std::ranges::find_if(next, [&](int r) { return !nearest_blocked(o, r); });
    rank = idle == next.end() ? next.front() : *idle;
  }
  return rank;
}

}  // namespace

std::optional<std::string> diagnose(const Observation& o) {
  const FlightLog& own = o.ranks[static_cast<std::size_t>(o.observer)].log;
  const FlightOperation* const blocked = blocked_in(o, o.observer);
  const FlightOperation* const waits_in = blocked != nullptr ? blocked : own.under_way();
  const auto say = [&](const FlightLog& culprit, std::string_view how) {
    const std::string observer =
        waits_in == nullptr
            ? fmt::format("{} waits for nothing", own.rank_name)
            : fmt::format("{} has waited {} in {}", own.rank_name,
                          seconds(o.now_ns - waits_in->enqueued_ns), own.describe(*waits_in));
    return fmt::format("{} on {} (process {}) {}; {}; {}", culprit.rank_name, culprit.host,
                       culprit.pid, how, last_operation(culprit, o.now_ns), observer);
  };
  const auto first = [&](Liveness liveness) {
    return std::ranges::find(o.ranks, liveness, &ObservedRank::liveness);
  };
  if (const auto gone = first(Liveness::gone); gone != o.ranks.end())
    return say(gone->log, "ended without a word");
  if (const auto silent = first(Liveness::silent); silent != o.ranks.end())
    return say(silent->log, "exists but gives no sign of life");
  if (waits_in == nullptr || o.now_ns - waits_in->enqueued_ns < o.timeout_ns) return {};
  const int root = root_of(o);
  if (root == o.observer) {
    return fmt::format("{} has waited {} in {}, which every rank of the group has begun",
                       own.rank_name, seconds(o.now_ns - waits_in->enqueued_ns),
                       own.describe(*waits_in));
  }
  return say(o.ranks[static_cast<std::size_t>(root)].log, "keeps the others waiting");
}

}  // namespace orchard
