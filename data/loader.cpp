#include "data/loader.h"

#include <utility>

#include "kernels/core/error.h"

namespace orchard {

PrefetchingLoader::PrefetchingLoader(Make make, std::size_t capacity)
    : make_(std::move(make)), capacity_(capacity) {
  require(capacity >= 1, "a loader needs room for at least one batch");
  producer_ = std::jthread([this](const std::stop_token& stop) { produce(stop); });
}

void PrefetchingLoader::produce(const std::stop_token& stop) {
  for (std::int64_t n = 0; !stop.stop_requested(); ++n) {
    std::optional<MicroBatch> batch;
    std::exception_ptr error;
    try {
      batch = make_(n);
    } catch (...) {
      error = std::current_exception();
    }
    std::unique_lock lock(mutex_);
    if (!batch) {
      error_ = error;
      finished_ = true;
      changed_.notify_all();
      return;
    }
    if (!changed_.wait(lock, stop, [this] { return ready_.size() < capacity_; })) return;
    ready_.push_back(std::move(*batch));
    changed_.notify_all();
  }
}

std::optional<MicroBatch> PrefetchingLoader::next() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return !ready_.empty() || finished_; });
  if (ready_.empty()) {
    if (error_) std::rethrow_exception(error_);
    return std::nullopt;
  }
  std::optional<MicroBatch> batch = std::move(ready_.front());
  ready_.pop_front();
  changed_.notify_all();
  return batch;
}

}  // namespace orchard
