// The shape of a kernel launch, the same for a GPU and the emulator.
#pragma once

#include <cstddef>

namespace orchard {

struct Extent3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr std::size_t volume() const { return std::size_t{1} * x * y * z; }
};

struct LaunchShape {
  const char* kernel;  // for messages; must outlive the launch
  Extent3 grid = {};   // blocks
  Extent3 block = {};  // threads of a block
  std::size_t shared_bytes = 0;
};

}  // namespace orchard
