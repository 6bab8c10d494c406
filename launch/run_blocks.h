// What the blocks of a run's model cost, for `orchard plan`: counted, and measured where it is known.
#pragma once

#include <string>
#include <vector>

#include "launch/options.h"
#include "train/link_costs.h"

namespace orchard {

struct RunBlocksRequest {
  RunSources sources;                // recipe and training set
  std::filesystem::path run_folder;  // where times may be kept; empty: nowhere
  int stage = 0;                     // of the recipe; 0: the first
  int replicas = 1;                  // of the model, that share a step
  enum class Times : std::uint8_t { kept, taken };
  Times times = Times::kept;  // taken: on this machine now, by one rank that has whole blocks
};

// Of one micro-batch, the mean one of the stage's first step.
struct RunBlocks {
  std::string title;  // of the table
  std::vector<LinkKind> kinds;
  std::vector<LinkCost> counted;   // FLOPs
  std::vector<LinkCost> measured;  // seconds; empty where nobody took times
  std::vector<LinkHalves> halves;

  // What cuts are balanced by.
  const std::vector<LinkCost>& best() const { return measured.empty() ? counted : measured; }
};

// Throws ConfigurationError or Error naming what is missing.
RunBlocks blocks_of_run(const RunBlocksRequest& request);

// One line a kind of block: how many, and what they cost.
std::string table_of(const RunBlocks& blocks);
// How so many stages are cut by either cost, and what share of the work the largest has.
std::string cuts_of(const RunBlocks& blocks, int stages);

}  // namespace orchard
