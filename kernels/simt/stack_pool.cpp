#include "kernels/simt/stack_pool.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>

#include "kernels/core/error.h"

namespace orchard::simt {
namespace {

constexpr std::size_t page = 4096;
constexpr std::size_t stack_bytes = 128 * 1024;  // and a page below that traps an overflow

}  // namespace

StackPool::~StackPool() {
  for (std::byte* const stack : stacks_) {
    renew_stack({stack + page, stack_bytes});  // whoever is given these addresses next may use them
    munmap(stack, page + stack_bytes);
  }
}

void StackPool::grow_to(std::size_t count) {
  while (stacks_.size() < count) {
    void* const range = mmap(nullptr, page + stack_bytes, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    require(range != MAP_FAILED && mprotect(range, page, PROT_NONE) == 0,
            "cannot map a stack of {} bytes for an emulated thread: {}", stack_bytes,
            std::strerror(errno));
    stacks_.push_back(static_cast<std::byte*>(range));
  }
}

StackPool::Slot StackPool::slot(std::size_t i) const {
  // Staggered by a cache line, or the hot tops of all stacks would fall into the same sets of L1.
  const std::size_t stagger = 64 * (i % 32);
  Slot slot;
  slot.stack.sp = stacks_[i] + page + stack_bytes - stagger;
  slot.stack.size = stack_bytes - stagger;
  return slot;
}

}  // namespace orchard::simt
