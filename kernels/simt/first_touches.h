// What a launch must bring from DRAM and take back, if its caches were empty before it and large
// enough to lose nothing: each sector is read once, where it is read before it is written, and written
// once. What a kernel asks for again, this does not see: the sectors of its requests tell that.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/simt/counters.h"

namespace orchard::simt {

class FirstTouches {
 public:
  void begin_launch() { ++launch_; }

  // By the offset of a byte in the heap.
  void read(std::size_t begin, std::size_t bytes, DramCounters& total) {
    for_sectors(begin, bytes, [&](Sector& sector) {
      if (sector.touched != launch_) total.read_bytes += sector_bytes;
      sector.touched = launch_;
    });
  }
  void write(std::size_t begin, std::size_t bytes, DramCounters& total) {
    for_sectors(begin, bytes, [&](Sector& sector) {
      if (sector.written != launch_) total.written_bytes += sector_bytes;
      sector.touched = sector.written = launch_;
    });
  }

 private:
  // The last launch that did so.
  struct Sector {
    std::uint32_t touched = 0, written = 0;
  };

  template <class Action>
  void for_sectors(std::size_t begin, std::size_t bytes, const Action& action) {
    const std::size_t end = (begin + bytes + sector_bytes - 1) / sector_bytes;
    if (sectors_.size() < end) sectors_.resize(end + end / 2);
    for (std::size_t i = begin / sector_bytes; i < end; ++i) action(sectors_[i]);
  }

  std::uint32_t launch_ = 0;
  std::vector<Sector> sectors_;
};

}  // namespace orchard::simt
