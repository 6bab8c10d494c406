// Memory that is shared with a file, or with nobody.
#pragma once

#include <cstddef>
#include <filesystem>
#include <utility>

namespace orchard {

class MappedMemory {
 public:
  // Zeroed memory of this process alone.
  static MappedMemory anonymous(std::size_t bytes);
  // A new file of zeros in place of any that was there. What is written to the memory is in the
  // file as soon as it is written, even if the process dies the moment after.
  static MappedMemory create(const std::filesystem::path& file, std::size_t bytes);
  // All of a file, read-only; it follows what others write.
  static MappedMemory open(const std::filesystem::path& file);

  MappedMemory() = default;
  MappedMemory(MappedMemory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  MappedMemory& operator=(MappedMemory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~MappedMemory();

  std::byte* data() const { return data_; }
  std::size_t size() const { return bytes_; }

 private:
  MappedMemory(std::byte* data, std::size_t bytes) : data_(data), bytes_(bytes) {}

  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace orchard
