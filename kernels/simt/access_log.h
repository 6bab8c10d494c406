// From the accesses of single threads to the requests of a warp.
//
// Each lane logs its own accesses; where the warp converges (block barrier, collective of all its
// lanes, end), the logs are aligned: the k-th access of each lane on one line of the source is one
// request.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/simt/counters.h"
#include "kernels/simt/runtime.h"

namespace orchard::simt {

struct LoggedAccess {
  std::uintptr_t address;
  std::uint32_t bytes;
  Access kind;
  Space space;
  std::uint8_t lane;
  Where where;

  bool same_place(const LoggedAccess& other) const {
    return where == other.where && kind == other.kind && space == other.space;
  }
};

using AccessLog = std::vector<LoggedAccess>;

// Counts the requests that the logs of one warp's lanes make, and empties the logs.
void count_requests(std::span<AccessLog* const> lanes, Counters& counters);

}  // namespace orchard::simt
