// Whether the forward and the backward of micro-batches are recorded as graphs and replayed. The
// results are the same, bit for bit.
#pragma once

#include <cstdint>

namespace orchard {

enum class Graphs : std::uint8_t { no, yes };

}  // namespace orchard
