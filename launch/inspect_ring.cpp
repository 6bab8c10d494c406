#include "launch/inspect_ring.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include "comm/flight_recorder.h"

namespace orchard {
namespace {

// "14:03:07.250125", local time.
std::string clock_time(std::int64_t ns) {
  const std::time_t whole = ns / 1'000'000'000;
  return fmt::format("{:%H:%M:%S}.{:06}", fmt::localtime(whole), ns / 1000 % 1'000'000);
}

std::string milliseconds(std::int64_t begin_ns, std::int64_t end_ns) {
  return end_ns == 0 ? "-" : fmt::format("{:.3f}", 1e-6 * static_cast<double>(end_ns - begin_ns));
}

}  // namespace

void inspect_ring(const std::filesystem::path& path) {
  const FlightLog log = FlightFile(path).read();
  fmt::print("ring {}: {} of {}, process {} on {}, {}\n\n", path.string(), log.rank_name, log.world,
             log.pid, log.host, name_of(log.state));
  fmt::print("{:<16}{:>12}{:>12}  ranks\n", "group", "collectives", "exchanges");
  for (const FlightLog::Group& group : log.groups) {
    fmt::print("{:<16}{:>12}{:>12}  {}\n", group.name, group.collectives, group.exchanges,
               fmt::join(group.members, " "));
  }
  fmt::print("\nthe last {} operations; ms from the call to the start and to the end\n",
             log.operations.size());
  fmt::print("{:<16}{:<12}{:>8}  {:<16}{:>6}{:>14} {:<5}{:>12}{:>12}\n", "time", "group", "number",
             "operation", "with", "bytes", "type", "start", "end");
  for (const FlightOperation& operation : log.operations) {
    const std::string peer = operation.peer < 0 ? "" : std::to_string(operation.peer);
    fmt::print("{:<16}{:<12}{:>8}  {:<16}{:>6}{:>14} {:<5}{:>12}{:>12}\n",
               clock_time(operation.enqueued_ns),
               log.groups[static_cast<std::size_t>(operation.group)].name, operation.sequence,
               name_of(operation.op), peer, operation.bytes, name_of(operation.dtype),
               milliseconds(operation.enqueued_ns, operation.started_ns),
               milliseconds(operation.enqueued_ns, operation.ended_ns));
  }
  if (const FlightOperation* const stuck = log.under_way())
    fmt::print("\n{} has not ended\n", log.describe(*stuck));
}

}  // namespace orchard
