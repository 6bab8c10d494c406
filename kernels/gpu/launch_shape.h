// The shape of a kernel launch, the same for a GPU and the emulator.
#pragma once

#include <cstddef>
#include <cstdint>

namespace orchard {

struct Extent3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr std::size_t volume() const { return std::size_t{1} * x * y * z; }
};

// Which blocks must be on the GPU at once. A grid barrier needs the whole grid, which the launch
// refuses if it does not fit.
enum class Residency : std::uint8_t { cluster, whole_grid };

struct LaunchShape {
  const char* kernel;  // for messages; must outlive the launch
  Extent3 grid = {};   // blocks
  Extent3 block = {};  // threads of a block
  std::size_t shared_bytes = 0;
  Extent3 cluster = {};  // blocks; divides the grid; more than one from sm_90 on
  Residency residency = Residency::cluster;
};

}  // namespace orchard
