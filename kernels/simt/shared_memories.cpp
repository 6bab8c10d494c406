#include "kernels/simt/shared_memories.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>

#include "kernels/core/error.h"

namespace orchard::simt {
namespace {

constexpr int poison = 0xff;
constexpr int red = 0xa5;

}  // namespace

SharedMemories::~SharedMemories() {
  if (base_) munmap(base_, count_ * window);
}

void SharedMemories::resize(std::size_t count) {
  if (count <= count_) return;
  void* const range = mmap(nullptr, count * window, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  require(range != MAP_FAILED, "cannot map the shared memory of {} emulated blocks: {}", count,
          std::strerror(errno));
  if (base_) munmap(base_, count_ * window);
  base_ = static_cast<std::byte*>(range);
  count_ = count;
  initialised_.resize(count);
}

void SharedMemories::renew(unsigned slot, std::size_t bytes) {
  std::memset(begin(slot), poison, bytes);
  std::memset(begin(slot) + bytes, red, red_zone);
  initialised_[slot].grow_to(bytes);
  initialised_[slot].forget(0, bytes);
}

std::ptrdiff_t SharedMemories::damage(unsigned slot, std::size_t bytes) const {
  for (std::size_t i = 0; i < red_zone; ++i) {
    if (begin(slot)[bytes + i] != std::byte{red}) return static_cast<std::ptrdiff_t>(i);
  }
  return -1;
}

}  // namespace orchard::simt
