// Cutting the model's chain of blocks (tower blocks, connector, decoder layers, head) into pipeline
// stages.
#pragma once

#include <span>
#include <vector>

namespace orchard {

// The first block of each stage, then the number of blocks: stage s has blocks [cuts[s],
// cuts[s+1]), at least one.
//
// No cut has a smaller largest stage; among those that share it, none has a smaller sum of squared
// stages, so that the others are even too. Exact dynamic programs, O(stages x blocks²); costs are
// finite and not negative. Throws Error where there are fewer blocks than stages.
std::vector<int> balanced_cuts(std::span<const double> costs, int stages);

// The cost of each stage.
std::vector<double> stage_costs(std::span<const double> costs, std::span<const int> cuts);

}  // namespace orchard
