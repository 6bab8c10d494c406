// What the emulator counts. Exact integers of the source, not estimates of a machine: fit for
// assertions such as "16 sectors per request" or "reads each byte once".
#pragma once

#include <cstdint>

namespace orchard::simt {

// Global memory, in one direction. A request is one load or store executed by a warp; a sector is
// 32 aligned bytes, the least that DRAM and the caches move.
struct AccessCounters {
  std::uint64_t requests = 0;
  std::uint64_t sectors = 0;        // different ones of each request, summed
  std::uint64_t ideal_sectors = 0;  // if the request's bytes were packed
  std::uint64_t bytes = 0;          // asked for by the lanes

  double sectors_per_request() const {
    return requests ? static_cast<double>(sectors) / static_cast<double>(requests) : 0;
  }
  bool operator==(const AccessCounters&) const = default;
};

struct Counters {
  AccessCounters loads;
  AccessCounters stores;
  std::uint64_t launches = 0;
  std::uint64_t blocks = 0;
  std::uint64_t block_barriers = 0;    // completed, per block
  std::uint64_t warp_collectives = 0;  // executed, per warp
};

}  // namespace orchard::simt
