// How far a run has come.
#pragma once

#include <compare>
#include <cstdint>
#include <filesystem>

namespace orchard {

// After `step` steps of `stage`; {0, 0}: nothing done. Ordered as a run goes through them.
struct RunPosition {
  int stage = 0;
  std::int64_t step = 0;

  auto operator<=>(const RunPosition&) const = default;
};

// Where a resumed run starts from: its newest checkpoint.
RunPosition newest_checkpoint(const std::filesystem::path& run_folder);

}  // namespace orchard
