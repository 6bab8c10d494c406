// At most one job trains in a run folder: two would write over each other's checkpoints and metrics.
#pragma once

#include <filesystem>

namespace orchard {

class RunLock {
 public:
  // Throws Error when another process, named, holds the folder. The system lets go of the lock when
  // the process ends, however it ends. Where the file system has no locks there is none.
  explicit RunLock(const std::filesystem::path& run_folder);
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;
  ~RunLock();

 private:
  int fd_;
};

}  // namespace orchard
