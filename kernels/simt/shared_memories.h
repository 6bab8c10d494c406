// The shared memories of resident blocks, one window of addresses each: rank r of a cluster begins at
// r << 18 in the addresses that instructions take.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/simt/initialised.h"

namespace orchard::simt {

class SharedMemories {
 public:
  static constexpr std::size_t window = std::size_t{256} << 10;
  static constexpr std::size_t red_zone = 256;  // behind each, in its window

  SharedMemories() = default;
  ~SharedMemories();
  SharedMemories(const SharedMemories&) = delete;
  SharedMemories& operator=(const SharedMemories&) = delete;

  // For `count` blocks; addresses given before are void if it grows.
  void resize(std::size_t count);
  // Poisons `bytes` and paints the red zone behind them.
  void renew(unsigned slot, std::size_t bytes);
  // The first byte of the red zone that was written; -1: none.
  std::ptrdiff_t damage(unsigned slot, std::size_t bytes) const;

  std::byte* begin(unsigned slot) const { return base_ + slot * window; }
  bool contains(const void* address) const { return offset_of(address) < count_ * window; }
  std::size_t offset_of(const void* address) const {
    return reinterpret_cast<std::uintptr_t>(address) - reinterpret_cast<std::uintptr_t>(base_);
  }
  unsigned slot_of(const void* address) const {
    return static_cast<unsigned>(offset_of(address) / window);
  }
  Initialised& initialised(unsigned slot) { return initialised_[slot]; }

 private:
  std::byte* base_ = nullptr;
  std::size_t count_ = 0;  // mapped windows
  std::vector<Initialised> initialised_;
};

}  // namespace orchard::simt
