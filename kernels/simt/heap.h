// The memory of an emulated device: one range of addresses, each allocation on pages of its own and
// followed by a red zone, so that any access is classified in constant time and addresses are
// never used twice.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/simt/initialised.h"

namespace orchard::simt {

// What was in a heap's live allocations.
struct HeapImage {
  std::vector<std::byte> bytes;
  Initialised initialised;
};

class Heap {
 public:
  Heap();
  ~Heap();
  Heap(const Heap&) = delete;
  Heap& operator=(const Heap&) = delete;

  std::byte* allocate(std::size_t bytes);  // filled with 0xff
  void free(std::byte* data) noexcept;

  // All of [address, address + bytes) lies inside one live allocation.
  bool contains(const void* address, std::size_t bytes) const {
    const std::size_t offset = offset_of(address);
    if (offset >= top_) return false;
    const Allocation& owner = allocations_[page_owner_[offset / page]];
    return owner.live && offset >= owner.begin && offset + bytes <= owner.begin + owner.bytes;
  }

  std::size_t offset_of(const void* address) const {
    return reinterpret_cast<std::uintptr_t>(address) - reinterpret_cast<std::uintptr_t>(base_);
  }
  const std::byte* address(std::size_t offset) const { return base_ + offset; }
  std::size_t size() const { return top_; }  // no address of an allocation is beyond it

  // By offset.
  Initialised& initialised() { return initialised_; }

  // Where the bytes lie instead, for a message: "4 bytes past the end of an allocation of ...".
  std::string locate(const void* address) const;

  // All live allocations, and back into the same ones.
  HeapImage save() const;
  void restore(const HeapImage& saved);

  // Throws Error when a byte of a live allocation's red zone was written; `writer` is to blame.
  void check_red_zones(const std::string& writer);

 private:
  friend class HeapAccess;
  static constexpr std::size_t page = 4096;

  struct Allocation {
    std::size_t begin = 0;  // offset from base_
    std::size_t bytes = 0;
    bool live = false;
    std::size_t red_zone_end() const { return (begin + bytes + page - 1) / page * page + page; }
  };

  std::byte* base_ = nullptr;
  std::size_t top_ = 0;  // offset of the first address never given out
  Initialised initialised_;
  std::vector<Allocation> allocations_;
  std::vector<std::uint32_t> page_owner_;  // index of the allocation that a page, or its red zone,
                                           // belongs to
};

// While one exists, the memory can be touched.
class HeapAccess {
 public:
  explicit HeapAccess(const Heap& heap);
  ~HeapAccess();
  HeapAccess(const HeapAccess&) = delete;
  HeapAccess& operator=(const HeapAccess&) = delete;

 private:
  const Heap& heap_;
};

}  // namespace orchard::simt
