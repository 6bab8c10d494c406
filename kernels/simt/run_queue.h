// The threads that can run, handed out in the order that the options ask for.
#pragma once

#include <cstddef>
#include <random>
#include <utility>
#include <vector>

#include "kernels/simt/simt_device.h"

namespace orchard::simt {

struct Thread;

class RunQueue {
 public:
  RunQueue(ThreadOrder order, std::uint64_t seed) : order_(order), random_(seed) {}

  // Empties the queue and makes room for `capacity` threads.
  void reset(std::size_t capacity) {
    ring_.resize(capacity);
    head_ = count_ = 0;
  }

  void push(Thread* thread) { slot(count_++) = thread; }

  // The next thread to run; nullptr when there is none.
  Thread* pop() {
    if (count_ == 0) return nullptr;
    --count_;
    switch (order_) {
      case ThreadOrder::fifo: {
        Thread* const first = slot(0);
        head_ = wrapped(head_ + 1);
        return first;
      }
      case ThreadOrder::random:
        std::swap(slot(below(count_ + 1)), slot(count_));
        return slot(count_);
      case ThreadOrder::reverse:
        break;
    }
    return slot(count_);
  }

  // The number of the i-th of `count` blocks to run; call with i = 0, 1, ...
  std::size_t block_number(std::size_t i, std::size_t count) {
    if (order_ == ThreadOrder::fifo) return i;
    if (order_ == ThreadOrder::reverse) return count - 1 - i;
    if (i == 0) {
      blocks_.resize(count);
      for (std::size_t b = 0; b < count; ++b) blocks_[b] = b;
    }
    std::swap(blocks_[i], blocks_[i + below(count - i)]);
    return blocks_[i];
  }

 private:
  Thread*& slot(std::size_t i) { return ring_[wrapped(head_ + i)]; }
  // Of less than twice around.
  std::size_t wrapped(std::size_t i) const { return i < ring_.size() ? i : i - ring_.size(); }
  // Not std::uniform_int_distribution, which differs between libraries.
  std::size_t below(std::size_t n) { return random_() % n; }

  ThreadOrder order_;
  std::mt19937_64 random_;
  std::vector<Thread*> ring_;  // holds slots head_ .. head_ + count_, wrapping
  std::size_t head_ = 0;
  std::size_t count_ = 0;
  std::vector<std::size_t> blocks_;
};

}  // namespace orchard::simt
