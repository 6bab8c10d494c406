// Prints the ring of a rank: who it was, how it ended, what it communicated last.
#pragma once

#include <filesystem>

namespace orchard {

void inspect_ring(const std::filesystem::path& path);

}  // namespace orchard
