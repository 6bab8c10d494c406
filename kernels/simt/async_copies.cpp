#include "kernels/simt/async_copies.h"

#include <cstring>

namespace orchard::simt {
namespace {

constexpr int poison = 0xff;

void perform(const AsyncCopy& copy) {
  std::memcpy(copy.shared, copy.global, copy.source_bytes);
  std::memset(static_cast<std::byte*>(copy.shared) + copy.source_bytes, 0,
              copy.bytes - copy.source_bytes);
}

}  // namespace

void AsyncCopies::issue(const AsyncCopy& copy, AsyncCompletion completion) {
  const bool now = completion == AsyncCompletion::eager;
  if (now) {
    perform(copy);
  } else {
    std::memset(copy.shared, poison, copy.bytes);
  }
  copies_.push_back({copy, now});
}

void AsyncCopies::wait(std::size_t pending_groups) {
  while (group_ends_.size() - done_groups_ > pending_groups) {
    for (const std::size_t end = group_ends_[done_groups_++]; done_ < end; ++done_) {
      if (!copies_[done_].happened) perform(copies_[done_].copy);
    }
  }
  if (done_ == copies_.size() && done_groups_ == group_ends_.size()) reset();
}

}  // namespace orchard::simt
