// Whether communication goes on beside computation, or is waited for where it starts. The results
// are the same, bit for bit.
#pragma once

#include <cstdint>

namespace orchard {

enum class Overlap : std::uint8_t { no, yes };

}  // namespace orchard
