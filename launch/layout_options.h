// The options of section [layout].
#pragma once

#include <vector>

#include "launch/run_options.h"

namespace orchard {

void add_layout(std::vector<RunOption>& options);

}  // namespace orchard
