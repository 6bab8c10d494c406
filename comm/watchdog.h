// Ends a job in which a rank has died or hangs, and says which.
//
// Each rank has a thread that shows in the rank's ring that the process lives, and watches the
// rings of the others. Where one is gone or silent, or an operation of its own takes too long, it
// finds out who is to blame, says so on standard error and in verdict.txt beside the rings, and
// ends the process. One rank speaks for all.
#pragma once

#include <chrono>
#include <filesystem>
#include <memory>
#include <string>

#include "comm/communicator.h"

namespace orchard {

struct WatchdogOptions {
  // Of the rings; shared by all ranks, made if it is not there.
  std::filesystem::path folder;
  // How this rank is called in messages: "rank 5 (pp1 dp0 tp1 | ep2 etp0 edp0)".
  std::string rank_name;
  // A rank without a sign of life, or an operation, for so long ends the job. More than the longest
  // time in which one rank works while others wait for it. A process that ends is noticed at once.
  std::chrono::milliseconds timeout{600'000};
  int exit_code = 1;
};

// One for a job, while its ranks communicate. On Linux; ranks on other hosts need a folder that
// both see. While it lives, SIGTERM, which mpirun sends to the ranks that are left when one has
// died, ends the process only after a look at who that was.
class Watchdog {
 public:
  // All ranks of `world` call it together. Its rings record all groups made from it.
  Watchdog(Communicator& world, const WatchdogOptions& options);
  // Tells the others that this rank leaves: in good order, or, when an exception passes, failing.
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

 private:
  class Thread;
  std::unique_ptr<Thread> thread_;
};

}  // namespace orchard
