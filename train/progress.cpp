#include "train/progress.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <optional>

namespace orchard {
namespace {

constexpr double live_interval = 0.1;  // fluent to the eye, and nothing beside the work it reports
constexpr double plain_interval = 10;  // a log stays readable
constexpr double patience = 5;         // what is over sooner needs no word

std::string rate_of(double count, double seconds) {
  const double rate = count / std::max(seconds, 1e-9);
  return rate < 10 ? fmt::format("{:.1f}", rate) : format_count(rate);
}

}  // namespace

SecondsClock steady_seconds() {
  return [] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
  };
}

Progress::Progress(Terminal& terminal, std::string doing, std::string units, std::int64_t total,
                   SecondsClock clock, double quiet_seconds)
    : terminal_(terminal),
      doing_(std::move(doing)),
      units_(std::move(units)),
      total_(total),
      clock_(std::move(clock)),
      start_(clock_()),
      shown_(start_),
      quiet_(quiet_seconds) {}

void Progress::reach(std::int64_t done) {
  done_ = done;
  const double now = clock_();
  if (now - shown_ < (terminal_.is_live() ? live_interval : plain_interval)) return;
  if (now - start_ < quiet_) return;
  shown_ = now;
  spoke_ = true;
  if (terminal_.is_live()) {
    terminal_.update(line());
  } else {
    terminal_.print(line());
  }
}

void Progress::finish() {
  const double seconds = clock_() - start_;
  if (seconds < quiet_ && !spoke_) return;
  terminal_.print(fmt::format("{}: {} {} in {}, {}/s", doing_, done_, units_,
                              format_duration(seconds),
                              rate_of(static_cast<double>(done_), seconds)));
}

std::string Progress::line() const {
  const double seconds = clock_() - start_;
  const auto done = static_cast<double>(done_), total = static_cast<double>(total_);
  const std::string rate = rate_of(done, seconds);
  if (total_ <= 0) return fmt::format("{} {} {}, {}/s", doing_, done_, units_, rate);
  const std::string left =
      done_ > 0 ? format_duration(seconds * (total - done) / done) + " left" : "";
  return fmt::format("{} {}/{} {} ({:.0f}%), {}/s{}{}", doing_, done_, total_, units_,
                     100 * done / total, rate, left.empty() ? "" : ", ", left);
}

ProgressHook patient_progress(Terminal& terminal, std::string doing, std::string units,
                              SecondsClock clock) {
  const auto current = std::make_shared<std::optional<Progress>>();
  return [current, &terminal, doing = std::move(doing), units = std::move(units),
          clock = std::move(clock)](std::int64_t done, std::int64_t total) {
    if (!*current) current->emplace(terminal, doing, units, total, clock, patience);
    (*current)->reach(done);
    if (done < total) return;
    (*current)->finish();
    current->reset();
  };
}

}  // namespace orchard
