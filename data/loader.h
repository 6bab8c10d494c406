// Micro-batches prepared ahead of the training step.
//
// One background thread makes batch 0, 1, 2, ... in order and keeps at most `capacity` of them
// ready. What comes out, and in which order, does not depend on timing. An exception in the making
// of batch n is thrown by the call that would have returned batch n, and by every call after it.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>

#include "data/batch.h"

namespace orchard {

class PrefetchingLoader {
 public:
  // Called on the background thread only; no value ends the stream.
  using Make = std::function<std::optional<MicroBatch>(std::int64_t n)>;

  PrefetchingLoader(Make make, std::size_t capacity);
  // Waits for the batch in the making, drops what is ready.
  ~PrefetchingLoader() = default;
  PrefetchingLoader(const PrefetchingLoader&) = delete;
  PrefetchingLoader& operator=(const PrefetchingLoader&) = delete;

  // The next batch, waiting for it if need be; nothing after the last.
  std::optional<MicroBatch> next();

 private:
  void produce(const std::stop_token& stop);

  Make make_;
  std::size_t capacity_;
  std::mutex mutex_;
  std::condition_variable_any changed_;
  std::deque<MicroBatch> ready_;
  bool finished_ = false;  // the producer will add nothing more
  std::exception_ptr error_;
  std::jthread producer_;  // last: it must stop before the members it uses go
};

}  // namespace orchard
