#include "comm/operation_log.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

namespace orchard {
namespace {

std::int64_t now_ns() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
}

std::size_t index_of(CommOp op) {
  return static_cast<std::size_t>(op);
}

}  // namespace

OperationStatistics& OperationStatistics::operator+=(const OperationStatistics& other) {
  calls += other.calls;
  bytes += other.bytes;
  seconds += other.seconds;
  return *this;
}

OperationLog::GroupId OperationLog::add_group(std::string_view name, std::span<const int> members) {
  const auto found = std::find_if(groups_.begin(), groups_.end(), [&](const Group& group) {
    return group.name == name && std::ranges::equal(group.members, members);
  });
  const auto id = static_cast<GroupId>(found - groups_.begin());
  if (found == groups_.end())
    groups_.push_back({.name = std::string(name),
                       .members = {members.begin(), members.end()},
                       .recorded_as = recorder_.add_group(name, members)});
  return id;
}

OperationLog::Ticket OperationLog::enqueued(GroupId id, const Request& request) {
  Group& group = groups_[static_cast<std::size_t>(id)];
  OperationStatistics& statistics = group.statistics[index_of(request.op)];
  ++statistics.calls;
  statistics.bytes += static_cast<std::int64_t>(request.bytes);
  std::int64_t& sequence = request.op == CommOp::exchange ? group.exchanges : group.collectives;
  const std::int64_t now = now_ns();
  const std::int64_t record = recorder_.begin({.op = request.op,
                                               .dtype = request.dtype,
                                               .group = group.recorded_as,
                                               .peer = request.peer,
                                               .sequence = sequence,
                                               .bytes = static_cast<std::int64_t>(request.bytes),
                                               .enqueued_ns = now});
  return {
      .group = id, .op = request.op, .sequence = sequence++, .record = record, .enqueued_ns = now};
}

void OperationLog::started(const Ticket& ticket) {
  if (ticket.record == Ticket::unlogged) return;
  recorder_.started(ticket.record, now_ns());
}

void OperationLog::ended(const Ticket& ticket) {
  if (ticket.record == Ticket::unlogged) return;
  const std::int64_t now = now_ns();
  recorder_.ended(ticket.record, now);
  Group& group = groups_[static_cast<std::size_t>(ticket.group)];
  group.statistics[index_of(ticket.op)].seconds +=
      1e-9 * static_cast<double>(now - ticket.enqueued_ns);
}

std::string OperationLog::describe(const Ticket& ticket) const {
  return fmt::format("{} {} of group {}", orchard::name_of(ticket.op), ticket.sequence,
                     groups_[static_cast<std::size_t>(ticket.group)].name);
}

OperationStatistics OperationLog::statistics(GroupId group, CommOp op) const {
  return groups_[static_cast<std::size_t>(group)].statistics[index_of(op)];
}

OperationStatistics OperationLog::statistics(std::string_view name, CommOp op) const {
  OperationStatistics sum;
  for (const Group& group : groups_)
    if (group.name == name) sum += group.statistics[index_of(op)];
  return sum;
}

}  // namespace orchard
