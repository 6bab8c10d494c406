// How many blocks a launch takes.
#pragma once

#include <cstdint>
#include <string_view>

#include "kernels/core/error.h"

namespace orchard {

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

// Blocks for `items`, `per_block` each, in the x direction of a grid.
inline unsigned blocks_for(std::string_view kernel, std::int64_t items, std::int64_t per_block) {
  const std::int64_t blocks = ceil_div(items, per_block);
  require(blocks < (std::int64_t{1} << 31), "{}: {} items take more blocks than a grid has (2^31)",
          kernel, items);
  return static_cast<unsigned>(blocks);
}

// An extent that a kernel counts in int.
inline int int_extent(std::string_view kernel, std::int64_t extent) {
  require(extent < (std::int64_t{1} << 31),
          "{}: an extent of {} is more than GPU kernels take (2^31)", kernel, extent);
  return static_cast<int>(extent);
}

}  // namespace orchard
