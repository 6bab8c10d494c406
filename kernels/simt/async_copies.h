// The asynchronous copies (cp.async) of one thread, in the groups that it committed them in.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "kernels/simt/runtime.h"

namespace orchard::simt {

class AsyncCopies {
 public:
  struct Issued {
    AsyncCopy copy;
    Where where;
    bool happened;
  };

  void reset() {
    copies_.clear();
    group_ends_.clear();
    done_ = done_groups_ = 0;
  }

  void issue(const Issued& copy) { copies_.push_back(copy); }
  // Closes the group of all copies since the last commit; it may be empty.
  void commit() { group_ends_.push_back(copies_.size()); }
  // Calls perform(copy) for the copies that have not happened, of all but the `pending_groups`
  // newest groups.
  template <class Perform>
  void wait(std::size_t pending_groups, const Perform& perform) {
    while (group_ends_.size() - done_groups_ > pending_groups) {
      for (const std::size_t end = group_ends_[done_groups_++]; done_ < end; ++done_) {
        if (!copies_[done_].happened) perform(copies_[done_].copy);
      }
    }
    if (done_ == copies_.size() && done_groups_ == group_ends_.size()) reset();
  }

  // That nobody has waited for, oldest first.
  std::span<const Issued> in_flight() const { return std::span(copies_).subspan(done_); }

 private:
  // Cut at group_ends_; the first done_ copies and done_groups_ groups have been waited for.
  std::vector<Issued> copies_;
  std::vector<std::size_t> group_ends_;
  std::size_t done_ = 0;
  std::size_t done_groups_ = 0;
};

}  // namespace orchard::simt
