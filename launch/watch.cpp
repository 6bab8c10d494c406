#include "launch/watch.h"

#include <unistd.h>

#include <array>

#include "launch/command.h"

namespace orchard {

namespace fs = std::filesystem;

std::unique_ptr<Watchdog> watch(Job& job, const RunConfig& run, const fs::path& rings) {
  if (job.ranks().size() == 1) return nullptr;
  return std::make_unique<Watchdog>(
      job.ranks(), WatchdogOptions{.folder = rings,
                                   .rank_name = job.name(),
                                   .timeout = std::chrono::seconds(run.hang_timeout),
                                   .exit_code = exit_failure});
}

AskingWatch::AskingWatch(Job& job, const RunConfig& run, const fs::path& run_folder) : job_(job) {
  if (job.ranks().size() == 1) return;
  const auto rings_of = [&](int process) {
    return run_folder / fmt::format("rings-asking-{}", process);
  };
  // The first rank's process, if it could make the folder.
  std::array<double, 1> process{0};
  if (job.is_first()) {
    std::error_code error;
    if (fs::create_directories(rings_of(::getpid()), error) && !error) process[0] = ::getpid();
  }
  job.ranks().max_on_host(process);
  if (process[0] == 0) return;
  rings_ = rings_of(static_cast<int>(process[0]));
  watchdog_ = watch(job, run, rings_);
}

void AskingWatch::end() {
  if (!watchdog_) return;
  job_.ranks().barrier();
  watchdog_.reset();
  std::error_code error;  // what is left is harmless
  if (job_.is_first()) fs::remove_all(rings_, error);
}

}  // namespace orchard
