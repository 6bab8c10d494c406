// The asynchronous copies (cp.async) of one thread, in the groups that it committed them in.
#pragma once

#include <cstddef>
#include <vector>

#include "kernels/simt/runtime.h"
#include "kernels/simt/simt_device.h"

namespace orchard::simt {

class AsyncCopies {
 public:
  void reset() {
    copies_.clear();
    group_ends_.clear();
    done_ = done_groups_ = 0;
  }

  // The operands are checked.
  void issue(const AsyncCopy& copy, AsyncCompletion completion);
  // Closes the group of all copies since the last commit; it may be empty.
  void commit() { group_ends_.push_back(copies_.size()); }
  // Returns when at most the `pending_groups` newest groups have not happened.
  void wait(std::size_t pending_groups);

  std::size_t in_flight() const { return copies_.size() - done_; }

 private:
  struct Issued {
    AsyncCopy copy;
    bool happened;
  };

  // Cut at group_ends_; the first done_ copies and done_groups_ groups have been waited for.
  std::vector<Issued> copies_;
  std::vector<std::size_t> group_ends_;
  std::size_t done_ = 0;
  std::size_t done_groups_ = 0;
};

}  // namespace orchard::simt
