// The last kernels launched on a stream. A fault shows when somebody waits, often kernels later: the
// message then says which they were.
#pragma once

#include <fmt/format.h>

#include <array>
#include <cstddef>
#include <string>

#include "kernels/gpu/launch_shape.h"

namespace orchard {

// "grid (4, 1, 1), block (256, 1, 1), 0 bytes of shared memory".
inline std::string text_of(const LaunchShape& shape) {
  return fmt::format("grid ({}, {}, {}), block ({}, {}, {}), {} bytes of shared memory",
                     shape.grid.x, shape.grid.y, shape.grid.z, shape.block.x, shape.block.y,
                     shape.block.z, shape.shared_bytes);
}

class LaunchLog {
 public:
  void note(const LaunchShape& shape) { last_[count_++ % last_.size()] = shape; }

  // For the end of a message: a line for each of the last kernels, the newest first. Empty where
  // there was none.
  std::string text() const {
    std::string lines;
    for (std::size_t i = 1; i <= last_.size() && i <= count_; ++i) {
      const LaunchShape& shape = last_[(count_ - i) % last_.size()];
      lines += fmt::format("\n  {} {}, {}",
                           i == 1 ? "last kernel of the stream:" : "before it:", shape.kernel,
                           text_of(shape));
    }
    return lines;
  }

 private:
  std::array<LaunchShape, 4> last_{};
  std::size_t count_ = 0;
};

}  // namespace orchard
