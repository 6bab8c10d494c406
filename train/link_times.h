// Times of a model's links as a run keeps them, so that a resume cuts its pipeline as before.
#pragma once

#include <filesystem>
#include <string>

#include "train/link_costs.h"

namespace orchard {

struct LinkTimes {
  std::string setting;  // what was timed: everything that the times depend on but the machine
  std::string device;
  CostByKind seconds;  // of a forward and a backward

  bool operator==(const LinkTimes&) const = default;
};

// Where a run keeps those of a stage of its recipe.
std::filesystem::path link_times_path(const std::filesystem::path& run_folder, int stage);

// JSON; every time comes back to the bit.
void write_link_times(const std::filesystem::path& path, const LinkTimes& times);
// Throws Error naming the file, what is wrong and the cure.
LinkTimes read_link_times(const std::filesystem::path& path);

}  // namespace orchard
