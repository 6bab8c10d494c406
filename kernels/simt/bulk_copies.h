// The copies that a thread had the copy engine make out of shared memory, in the groups that it
// committed them in (cp.async.bulk, cp.async.bulk.tensor, cp.reduce.async.bulk).
#pragma once

#include <algorithm>
#include <cstddef>
#include <functional>
#include <span>
#include <utility>
#include <vector>

#include "kernels/simt/race_checker.h"

namespace orchard::simt {

struct BulkCopy {
  std::function<void()> read;   // takes the source
  std::function<void()> write;  // leaves it at the destination
  Where where;
  Operation reading = 0, writing = 0;
  bool taken = false, left = false;
  bool waited_for = false;  // at least for its reading

  void take() {
    if (!std::exchange(taken, true)) read();
  }
  void leave() {
    if (!std::exchange(left, true)) write();
  }
};

class BulkGroups {
 public:
  void reset() {
    copies_.clear();
    ends_.clear();
  }

  void issue(BulkCopy copy) { copies_.push_back(std::move(copy)); }
  void commit() { ends_.push_back(copies_.size()); }
  // The copies of all but the `pending` newest groups, oldest first.
  std::span<BulkCopy> before(std::size_t pending) {
    const std::size_t end = ends_.size() > pending ? ends_[ends_.size() - pending - 1] : 0;
    return {copies_.data(), end};
  }
  // That nobody has waited for, oldest first.
  std::span<const BulkCopy> in_flight() const {
    return {std::find_if(copies_.begin(), copies_.end(),
                         [](const BulkCopy& copy) { return !copy.waited_for; }),
            copies_.end()};
  }
  void leave_all() {
    for (BulkCopy& copy : copies_) copy.leave();
  }

 private:
  std::vector<BulkCopy> copies_;  // cut at ends_
  std::vector<std::size_t> ends_;
};

}  // namespace orchard::simt
