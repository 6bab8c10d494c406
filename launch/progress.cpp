#include "launch/progress.h"

#include <fmt/core.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>

namespace orchard {
namespace {

constexpr double terminal_interval_s = 0.2;
constexpr double log_interval_s = 10;

}  // namespace

Progress::Progress(std::string what)
    : what_(std::move(what)),
      on_terminal_(::isatty(STDERR_FILENO) == 1),
      start_(Clock::now()),
      last_(start_) {}

Progress::~Progress() {
  if (open_) std::fputc('\n', stderr);
}

void Progress::report(std::int64_t done, std::int64_t total) {
  const auto now = Clock::now();
  const double since = std::chrono::duration<double>(now - last_).count();
  const bool last = done == total;
  if (!last && since < (on_terminal_ ? terminal_interval_s : log_interval_s)) return;
  last_ = now;
  const double elapsed = std::chrono::duration<double>(now - start_).count();
  std::string line = fmt::format("{} {}/{}", what_, done, total);
  if (last) {
    line += fmt::format(", {}", duration_text(elapsed));
  } else if (done > 0) {
    const auto remaining = static_cast<double>(total - done) / static_cast<double>(done);
    line += fmt::format(", {} left", duration_text(elapsed * remaining));
  }
  if (on_terminal_) {
    fmt::print(stderr, "\r{:<70}", line);
    std::fflush(stderr);
    open_ = true;
  } else {
    fmt::print(stderr, "{}\n", line);
  }
}

std::string duration_text(double seconds) {
  const auto whole = static_cast<std::int64_t>(std::lround(seconds));
  if (whole < 60) return fmt::format("{} s", whole);
  if (whole < 3600) return fmt::format("{} min {:02} s", whole / 60, whole % 60);
  return fmt::format("{} h {:02} min", whole / 3600, whole / 60 % 60);
}

}  // namespace orchard
