// What the emulator counts. Exact integers of the source, not estimates of a machine: fit for
// assertions such as "16 sectors per request" or "reads each byte once".
#pragma once

#include <cstddef>
#include <cstdint>

namespace orchard::simt {

inline constexpr std::size_t sector_bytes = 32;

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

// Shared memory, in one direction. A wavefront is one pass over the 32 banks of 4 bytes; a request of
// 16 bytes a lane needs at least four, and more where lanes of one pass meet in a bank.
struct SharedCounters {
  std::uint64_t requests = 0;
  std::uint64_t wavefronts = 0;
  std::uint64_t ideal_wavefronts =
      0;                    // if the request's different words were spread over the banks
  std::uint64_t bytes = 0;  // asked for by the lanes

  std::uint64_t excess() const { return wavefronts - ideal_wavefronts; }
  bool operator==(const SharedCounters&) const = default;
};

// DRAM, in whole sectors, of launches whose caches are empty at their start and lose nothing
// (first_touches.h): the least that such a launch can move.
struct DramCounters {
  std::uint64_t read_bytes = 0;     // of sectors that a launch reads before it writes them
  std::uint64_t written_bytes = 0;  // of sectors that it writes
  std::uint64_t bytes() const { return read_bytes + written_bytes; }
  bool operator==(const DramCounters&) const = default;
};

struct Counters {
  AccessCounters loads;  // cp.async included
  AccessCounters stores;
  DramCounters dram;                     // the copy engine included
  SharedCounters shared_loads;           // ldmatrix included
  SharedCounters shared_stores;          // cp.async included
  std::uint64_t async_copy_bytes = 0;    // that cp.async read, which are among those of `loads`
  std::uint64_t tensor_flops = 0;        // of mma and wgmma, padding included
  std::uint64_t mma_instructions = 0;    // executed, per warp
  std::uint64_t wgmma_instructions = 0;  // executed, per warp: four for a warpgroup's
  std::uint64_t tensor_load_bytes = 0;   // by the copy engine, zeros outside tensors included
  std::uint64_t tensor_store_bytes = 0;  // by it, stored or added to what is there, inside tensors
  std::uint64_t launches = 0;
  std::uint64_t blocks = 0;
  std::uint64_t block_barriers = 0;    // completed, per block
  std::uint64_t warp_collectives = 0;  // executed, per warp
  std::uint64_t shuffles = 0;          // of them
};

}  // namespace orchard::simt
