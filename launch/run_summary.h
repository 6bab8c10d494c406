// What a resolved run amounts to, for --dry-run: the model's size and each stage's work.
#pragma once

#include <string>

#include "train/run_config.h"

namespace orchard {

std::string run_summary(const RunConfig& run, int ranks);

}  // namespace orchard
