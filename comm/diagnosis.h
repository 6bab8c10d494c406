// Who keeps a job from going on: read from the rings of all ranks.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "comm/flight_recorder.h"

namespace orchard {

// What an observer knows about a rank beside its ring.
enum class Liveness : std::uint8_t {
  alive,
  silent,  // its process exists, or is out of sight, and gives no sign of life
  gone,    // its process ended without saying so
};

struct ObservedRank {
  FlightLog log;
  Liveness liveness = Liveness::alive;
};

struct Observation {
  std::span<const ObservedRank> ranks;  // by world rank
  int observer = 0;
  std::int64_t now_ns = 0;
  std::int64_t timeout_ns = 0;  // an operation that takes longer will not end
};

// The rank that is to blame and why: its name, how it failed, its last operation, and the operation
// that the observer waits for. Nothing where everybody is alive and no operation of the observer
// has taken longer than the timeout.
//
// Ranks that are gone come first, then silent ones. If all are alive, it is those that have not
// begun the operation that the observer waits for, and of these, one that waits for nothing itself. Where
// all have begun what the observer waits for, somebody among them waits for others: hosts run ahead of
// their devices.
std::optional<std::string> diagnose(const Observation& observation);

}  // namespace orchard
