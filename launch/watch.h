// The watchdog over the ranks of a command (comm/watchdog.h): where its rings lie, and when it ends.
#pragma once

#include <filesystem>
#include <memory>

#include "comm/watchdog.h"
#include "launch/job.h"
#include "train/run_config.h"

namespace orchard {

// Null for a rank alone, which has nobody to wait for. All ranks call it.
std::unique_ptr<Watchdog> watch(Job& job, const RunConfig& run, const std::filesystem::path& rings);

// Of a command that asks a model and leaves nothing behind: its rings lie in a folder of their own
// beside the checkpoints, so that a training and other commands may run meanwhile, and are removed
// once all ranks have answered. They stay where one failed. Nobody watches where the run folder
// cannot be written to.
class AskingWatch {
 public:
  // All ranks call it.
  AskingWatch(Job& job, const RunConfig& run, const std::filesystem::path& run_folder);
  // All ranks call it, when none communicates any more.
  void end();

 private:
  Job& job_;
  std::filesystem::path rings_;
  std::unique_ptr<Watchdog> watchdog_;
};

}  // namespace orchard
