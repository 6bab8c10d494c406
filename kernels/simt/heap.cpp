#include "kernels/simt/heap.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "kernels/core/error.h"

namespace orchard::simt {
namespace {

// Addresses only: pages take memory when they are first written.
constexpr std::size_t reserved = std::size_t{256} << 30;
constexpr int red = 0xa5;
constexpr int poison = 0xff;

// The longest red zone: the rest of a page and a whole one.
const std::array<std::byte, 8192> red_bytes = [] {
  std::array<std::byte, 8192> bytes;
  bytes.fill(std::byte{red});
  return bytes;
}();

}  // namespace

Heap::Heap() {
  void* const range =
      mmap(nullptr, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  require(range != MAP_FAILED, "cannot reserve {} bytes of addresses for an emulated device: {}",
          reserved, std::strerror(errno));
  base_ = static_cast<std::byte*>(range);
}

Heap::~Heap() {
  munmap(base_, reserved);
}

std::byte* Heap::allocate(std::size_t bytes) {
  const Allocation allocation{top_, bytes, true};
  require(bytes < reserved && allocation.red_zone_end() <= reserved,
          "an emulated device gives out {} bytes of addresses in its life: {} are used, {} were "
          "asked for",
          reserved, top_, bytes);
  top_ = allocation.red_zone_end();
  initialised_.grow_to(top_);
  page_owner_.resize(top_ / page, static_cast<std::uint32_t>(allocations_.size()));
  allocations_.push_back(allocation);
  const HeapAccess access(*this);
  std::byte* const data = base_ + allocation.begin;
  std::memset(data, poison, bytes);
  std::memset(data + bytes, red, top_ - allocation.begin - bytes);
  return data;
}

void Heap::free(std::byte* data) noexcept {
  Allocation& allocation = allocations_[page_owner_[offset_of(data) / page]];
  allocation.live = false;
  madvise(data, allocation.red_zone_end() - allocation.begin, MADV_DONTNEED);
}

std::string Heap::locate(const void* address) const {
  const std::size_t offset = offset_of(address);
  if (offset >= top_) return "not an address of this device";
  const std::uint32_t index = page_owner_[offset / page];
  const Allocation& owner = allocations_[index];
  if (!owner.live) {
    return fmt::format("at byte {} of a freed allocation of {} bytes", offset - owner.begin,
                       owner.bytes);
  }
  const std::size_t end = owner.begin + owner.bytes;
  const bool has_next = index + 1 < allocations_.size();
  if (has_next && offset >= end && top_ > offset) {
    const Allocation& next = allocations_[index + 1];
    if (next.live && next.begin - offset < offset - end) {
      return fmt::format("{} bytes before the start of an allocation of {} bytes",
                         next.begin - offset, next.bytes);
    }
  }
  return fmt::format("at byte {} of an allocation of {} bytes", offset - owner.begin, owner.bytes);
}

HeapImage Heap::save() const {
  HeapImage out{{}, initialised_};
  for (const Allocation& allocation : allocations_) {
    const std::byte* const data = base_ + allocation.begin;
    if (allocation.live) out.bytes.insert(out.bytes.end(), data, data + allocation.bytes);
  }
  return out;
}

void Heap::restore(const HeapImage& saved) {
  initialised_ = saved.initialised;
  const std::byte* from = saved.bytes.data();
  for (const Allocation& allocation : allocations_) {
    if (!allocation.live) continue;
    std::memcpy(base_ + allocation.begin, from, allocation.bytes);
    from += allocation.bytes;
  }
}

void Heap::check_red_zones(const std::string& writer) {
  for (const Allocation& allocation : allocations_) {
    if (!allocation.live) continue;
    std::byte* const zone = base_ + allocation.begin + allocation.bytes;
    const std::size_t bytes = allocation.red_zone_end() - allocation.begin - allocation.bytes;
    if (std::memcmp(zone, red_bytes.data(), bytes) == 0) continue;
    const auto first = std::mismatch(zone, zone + bytes, red_bytes.data()).first - zone;
    std::memset(zone, red, bytes);
    fail("{} wrote, without store(), at byte {} of an allocation of {} bytes", writer,
         allocation.bytes + static_cast<std::size_t>(first), allocation.bytes);
  }
}

HeapAccess::HeapAccess(const Heap& heap) : heap_(heap) {
  require(mprotect(heap.base_, heap.top_, PROT_READ | PROT_WRITE) == 0,
          "cannot map an emulated device's memory: {}", std::strerror(errno));
}

HeapAccess::~HeapAccess() {
  mprotect(heap_.base_, heap_.top_, PROT_NONE);
}

}  // namespace orchard::simt
