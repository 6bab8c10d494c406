// Whether communication goes on beside computation, or is waited for where it begins.
#pragma once

#include <cstdint>

namespace orchard {

// The results have the same bits.
enum class Overlap : std::uint8_t { no, yes };

}  // namespace orchard
