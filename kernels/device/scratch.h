// Cuts the one workspace block of an operation into arrays.
//
//   ScratchLayout layout;
//   const auto counts = layout.add<std::int32_t>(experts);
//   std::byte* const scratch = stream.workspace(layout.bytes());
//   std::int32_t* const p = counts.in(scratch);
#pragma once

#include <cstddef>
#include <cstdint>

namespace orchard {

template <class T>
struct ScratchArray {
  std::size_t offset = 0;
  T* in(std::byte* scratch) const { return reinterpret_cast<T*>(scratch + offset); }
};

class ScratchLayout {
 public:
  // Room for `count` elements that shares no cache line with the other arrays.
  template <class T>
  ScratchArray<T> add(std::int64_t count) {
    const std::size_t offset = bytes_;
    bytes_ += (static_cast<std::size_t>(count) * sizeof(T) + 63) / 64 * 64;
    return {offset};
  }

  std::size_t bytes() const { return bytes_; }

 private:
  std::size_t bytes_ = 0;
};

}  // namespace orchard
